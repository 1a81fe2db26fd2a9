"""The schema every step's parameters share (source: ours). Imports nothing heavy: the CLI and KFP read it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from model.config import PRESETS
from model.errors import MoonflowError, did_you_mean

HIGHEST_RATE = 1.0
"""Learning rates above it are taken for a slip of the pen (ours); trainings that explode on purpose use 0.1."""

NO_EFFECT: dict[str, Any] = {"lineage": "none"}
"""``json_schema_extra`` of a field that changes how a step works and nothing of what it writes."""
AT_THE_END: dict[str, Any] = {"lineage": "end"}
"""``json_schema_extra`` of a field that changes only what a step makes last, from what it has saved before: with
another value the step goes on from that and makes its end again."""


class StepConfig(BaseModel):
    """Base of each ``components/<step>/config.py: Config``: flat int, float, str and bool fields with a description.

    The same fields are the step's KFP parameters, its section of a profile file and its table in the README. What can
    be checked of a value without the outside world is checked here, so that every way to start a step checks it.

    A field is part of the step's lineage, so that another value under a used run id is refused, unless it says
    NO_EFFECT or AT_THE_END.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    repeatable: ClassVar[bool] = False
    """Whether the step costs little and does no harm a second time: other parameters or inputs under a used run id then
    make its next output, instead of being refused."""
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
            told = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
            raise MoonflowError(f"{where}: parameter {name!r}: {told} (got {first.get('input')!r})") from None

    @property
    def lineage(self) -> dict[str, Any]:
        """The values that decide what the step's work is, in JSON's terms."""
        return self._values("")

    @property
    def ending(self) -> dict[str, Any]:
        """The values that change only what the step makes last."""
        return self._values(AT_THE_END["lineage"])

    @property
    def sha256(self) -> str:
        """Hex digest of ``lineage`` in canonical JSON."""
        canonical = json.dumps(self.lineage, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _values(self, effect: str) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        return {name: values[name] for name, field in type(self).model_fields.items() if _effect(field) == effect}


class TrainingConfig(StepConfig):
    """Base of the steps that save checkpoints on their way (``components.runtime.retention``)."""

    keep_last: int = Field(
        2,
        ge=1,
        json_schema_extra=NO_EFFECT,
        description="newest checkpoints kept in the store until the step is complete (source: ours)",
    )
    keep_best: str = Field(
        "",
        json_schema_extra=NO_EFFECT,
        description="metric, e.g. loss/total, whose best checkpoint is kept as well; empty = none (source: ours)",
    )


class EpisodesConfig(StepConfig):
    """Base of the steps that run episodes (``model.rl.failures``)."""

    max_failed_episodes: float = Field(
        0.1,
        ge=0,
        lt=1,
        json_schema_extra=NO_EFFECT,
        description="share of the episodes (of an evaluation: of each checkpoint) that may fail by a broken tool, task "
        "or answer of the engine; they are counted and train nothing; more fail the step (source: ours)",
    )
    sandbox: str = Field(
        "strict",
        pattern="^(strict|unsafe)$",
        json_schema_extra=NO_EFFECT,
        description="model-written programs: strict refuses them where the kernel takes no seccomp filter, unsafe runs "
        "them with what it has (source: ours)",
    )


def _preset(name: str) -> str:
    known = sorted(path.stem for path in PRESETS.glob("*.json"))
    if name not in known:
        raise ValueError(f"there is no such preset{did_you_mean(name, known)}; choose one of {', '.join(known)}")
    return name


Preset = Annotated[str, AfterValidator(_preset)]
"""A model's shape: the name of a file in model/presets."""


def _effect(field: FieldInfo) -> str:
    """The field's mark, "" for one of the lineage."""
    extra = field.json_schema_extra
    return str(extra.get("lineage", "")) if isinstance(extra, dict) else ""


def meaning(field: FieldInfo) -> str:
    """What a parameter means and how large it may be, in one line."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "multiple_of": "a multiple of"}
    bounds = [f"{say} {getattr(bound, key):g}" for bound in field.metadata for key, say in words.items()
              if getattr(bound, key, None) is not None]  # fmt: skip
    return " ".join((field.description or "").split()) + (f" [{', '.join(bounds)}]" if bounds else "")
