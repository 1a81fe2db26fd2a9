"""Parameters of zero-vision SFT."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from components.runtime.config import HIGHEST_RATE, MixtureConfig
from model.boundary.errors import MoonflowError
from model.data.order.shares import parse_shares


def _shares(text: str) -> str:
    try:
        parse_shares(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return text


class Config(MixtureConfig):
    steps: int = Field(240, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    sources: Annotated[str, AfterValidator(_shares)] = Field(
        "",
        description="your own data, as name=share with commas between: the share of the tokens that each of these "
        "sources of prepare_data.sources has, 1 in sum for your data alone; empty = none (source: ours)",
    )
    tokens_per_row: int = Field(512, ge=64, description="sequence length in tokens (source: ours)")
    rows: int = Field(8, ge=1, description="sequences per optimizer step (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products: float32, or bfloat16 unless the CPU has no instructions for it; "
        "weights are float32 (source: ours)",
    )
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts in the forward pass: full, as they are, or int4, rounded as an "
        "INT4 export rounds them (source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(3, ge=0, description="seed of the data order (source: ours)")
