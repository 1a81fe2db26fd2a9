"""Parameters of zero-vision SFT."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from components.runtime.config import HIGHEST_RATE, FineTuningConfig
from model.boundary.errors import MoonflowError
from model.data.order.shares import parse_shares


def _shares(text: str) -> str:
    try:
        parse_shares(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return text


class Config(FineTuningConfig):
    steps: int = Field(240, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    sources: Annotated[str, AfterValidator(_shares)] = Field(
        "",
        description="your own data, as name=share with commas between: the share of the tokens that each of these "
        "sources of prepare_data.sources has, 1 in sum for your data alone; empty = none (source: ours)",
    )
    seed: int = Field(3, ge=0, description="seed of the data order (source: ours)")
