"""Parameters of the evaluate step."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from components.evaluate.floors import parse_floors
from components.release.names import Champion
from components.runtime.config import AT_THE_END, EpisodesConfig, SwarmConfig
from model.boundary.errors import MoonflowError
from model.evals.suites import SUITES
from model.rl.tasks.names import parse_tasks, short_name


def evaluated_tasks(text: str) -> list[str]:
    """Tasks of a user as ``module:name`` with commas between, each of which is a suite.

    Raises:
        MoonflowError: as `parse_tasks`, or one has the name of a suite of ours.
    """
    names = parse_tasks(text)
    known = {*SUITES, *(suite.family for suite in SUITES.values())}
    if taken := next((name for name in names if short_name(name) in known), ""):
        raise MoonflowError(f"{taken}: there is a suite {short_name(taken)} already: give your task another name")
    return names


def _tasks(text: str) -> str:
    try:
        evaluated_tasks(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return text


class Config(SwarmConfig, EpisodesConfig):
    samples: int = Field(64, ge=2, description="held-out tasks per suite for the final model (source: ours)")
    samples_at_floor: int = Field(
        600,
        ge=0,
        description="held-out tasks per suite for the final model, at most, where one of the gate's floors lies within "
        "`sigmas` standard errors of its score: they are measured in parts, until it no longer does or the held-out "
        "split ends; not more than `samples` = never. If only the rules change later, no more are measured (source: "
        "ours)",
    )
    samples_intermediate: int = Field(
        16,
        ge=2,
        description="held-out tasks per suite for the untrained model and for the checkpoints before the final one; an "
        "imported checkpoint gets as many as the final model, which the gate compares with it (source: ours)",
    )
    tasks: Annotated[str, AfterValidator(_tasks)] = Field(
        "",
        description="tasks of your own package, as module:name with commas between, of which each is a suite; empty = "
        "none; model/rl/tasks/README.md writes one (source: ours)",
    )
    temperature: float = Field(
        0.0, ge=0, description="sampling temperature; 0 = greedy (source: ours; K2.5 evaluates at 1.0)"
    )
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts while the trained checkpoints are measured: full, as they are, "
        "or int4, as an INT4 export has them; promote exports only the precision that was measured "
        "(source: ours)",
    )
    max_batch: int = Field(
        128,
        ge=1,
        description="completions generated at the same time; half as many more episodes are under way, or 192 if that "
        "is more; of those that may run programs 192 at most, since the sandbox has room for so many (source: ours)",
    )
    # From here to `sigmas`: the gate's rules. When one changes, the scores are kept and only the gate decides again.
    floors: str = Field(
        "digit_string=0.85, digit_count=0.7, fact_qa=0.6, array_tool=0.85, array_tool_image=0.45, sub_search=0.9, "
        "wide_search=0.45",
        json_schema_extra=AT_THE_END,
        description="scores that the final model must reach, as suite=value, ability/modality=value or, for the better "
        "mode of wide_search, family=value with commas between; empty = none (source: ours)",
    )
    champion: Champion = Field(
        "moonflow@champion",
        json_schema_extra=AT_THE_END,
        description="MODEL@ALIAS of the registered model that no suite may score below; empty = none (source: ours)",
    )
    margin: float = Field(
        0.02,
        ge=0,
        le=1,
        json_schema_extra=AT_THE_END,
        description="score that a suite may lose against the champion, and against an imported checkpoint (source: "
        "ours)",
    )
    well_formed: float = Field(
        0.9,
        ge=0,
        le=1,
        json_schema_extra=AT_THE_END,
        description="smallest share of episodes that must end with a readable answer (source: ours)",
    )
    sigmas: float = Field(
        2.0,
        ge=0,
        json_schema_extra=AT_THE_END,
        description="half-width, in standard errors, of the interval around a difference of scores; a suite counts "
        "as worse only if the whole interval is below the bound (source: ours)",
    )
    seed: int = Field(0, ge=0, description="seed of the untrained weights and of sampling (source: ours)")

    @model_validator(mode="after")
    def _known_floors(self) -> Self:
        """A floor names a suite, which may be one of the tasks."""
        try:
            parse_floors(self.floors, own=[short_name(name) for name in parse_tasks(self.tasks)])
        except MoonflowError as error:
            raise ValueError(f"parameter 'floors': {error} (got {self.floors!r})") from None
        return self
