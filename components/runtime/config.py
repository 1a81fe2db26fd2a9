"""The schema every step's parameters share (source: ours). Imports nothing heavy: the CLI and KFP read it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import MoonflowError


class StepConfig(BaseModel):
    """Base of each ``components/<step>/config.py: Config``: flat int, float, str and bool fields with a description.

    The same fields are the step's KFP parameters, its section of a profile file and its table in the README.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    looped: ClassVar[tuple[str, ...]] = ()
    """Fields that tell apart the tasks of a step that one pipeline runs several times. The pipeline gives them, not the
    profile."""

    @classmethod
    def task_name(cls, step: str, values: Mapping[str, Any]) -> str:
        """The name of a task of ``step``: of its folder in the store, its MLflow run and its progress."""
        return "-".join([step, *(str(values[name]) for name in cls.looped)])

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """``values`` as a config; ``where`` (a file or a step) names the place in the one-line MoonflowError."""
        known = list(cls.model_fields)
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise MoonflowError(f"{where}: unknown parameter {key!r}{hint} (known: {', '.join(known) or 'none'})")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # a rule about several parameters, which says itself what it is about
                raise MoonflowError(f"{where}: {first['ctx']['error']}") from None
            name = ".".join(str(part) for part in first["loc"])
            raise MoonflowError(f"{where}: parameter {name!r}: {first['msg']} (got {first.get('input')!r})") from None

    @property
    def sha256(self) -> str:
        """Hex digest of the values in canonical JSON: the guard against resuming with other parameters."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class TrainingConfig(StepConfig):
    """Base of the steps that save checkpoints on their way (``components.runtime.retention``)."""

    keep_last: int = Field(
        2, ge=1, description="newest checkpoints kept in the store until the step is complete (source: ours)"
    )
    keep_best: str = Field(
        "",
        description="metric, e.g. loss/total, whose best checkpoint is kept as well; empty = none (source: ours)",
    )


class EpisodesConfig(StepConfig):
    """Base of the steps that run episodes (``model.rl.failures``)."""

    max_failed_episodes: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the episodes (of an evaluation: of each checkpoint) that may fail by a broken tool, task "
        "or answer of the engine; they are counted and train nothing; more fail the step (source: ours)",
    )
