"""Parameters of the evaluate step."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from components.evaluate.floors import parse_floors
from components.promote.names import Champion
from components.runtime.config import AT_THE_END, EpisodesConfig
from model.errors import MoonflowError


def _floors(text: str) -> str:
    try:
        parse_floors(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return text


class Config(EpisodesConfig):
    samples: int = Field(64, ge=2, description="held-out tasks per suite for the final model (source: ours)")
    samples_intermediate: int = Field(
        16, ge=2, description="held-out tasks per suite for the untrained model and for checkpoints between (ours)"
    )
    temperature: float = Field(
        0.0, ge=0, description="sampling temperature; 0 is greedy (source: ours; K2.5 evaluates at 1.0)"
    )
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="routed experts of the trained checkpoints: as they are (full) or as an INT4 export has them "
        "(int4); promote exports only what was measured (source: ours)",
    )
    max_batch: int = Field(128, ge=1, description="completions generated at once (source: ours)")
    # From here to `sigmas`: what the gate asks of the scores. With other values the scores stay and it decides again.
    floors: Annotated[str, AfterValidator(_floors)] = Field(
        "digit_string=0.8, digit_count=0.6, array_tool=0.7",
        json_schema_extra=AT_THE_END,
        description="scores the final model must reach: suite=value or ability/modality=value, ... (source: ours)",
    )
    champion: Champion = Field(
        "moonflow@champion",
        json_schema_extra=AT_THE_END,
        description="MODEL@ALIAS in the registry that no suite may fall behind; empty = none (source: ours)",
    )
    margin: float = Field(
        0.02,
        ge=0,
        le=1,
        json_schema_extra=AT_THE_END,
        description="loss of score in a suite against the champion that is let pass (source: ours)",
    )
    well_formed: float = Field(
        0.9,
        ge=0,
        le=1,
        json_schema_extra=AT_THE_END,
        description="least share of episodes that end with a readable answer (source: ours)",
    )
    sigmas: float = Field(
        2.0,
        ge=0,
        json_schema_extra=AT_THE_END,
        description="half width, in standard errors, of the interval that shows a suite to be worse (source: ours)",
    )
    seed: int = Field(0, ge=0, description="seed of the untrained weights and of sampling (source: ours)")
