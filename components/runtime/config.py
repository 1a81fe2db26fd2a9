"""The schema every step's parameters share (source: ours). Imports nothing heavy: the CLI and KFP read it."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from model.boundary.errors import MoonflowError, did_you_mean
from model.data.order.mixtures import mixtures
from model.network.config import PRESETS
from model.rl.tasks.names import parse_task_shares
from model.rollout.addresses import parse_addresses
from model.swarm.families import SWARM_FAMILIES

HIGHEST_RATE = 1.0
"""Learning rates above it are taken for a typing error (ours); trainings that explode on purpose use 0.1."""

NO_EFFECT: dict[str, Any] = {"lineage": "none"}
"""``json_schema_extra`` of a field that changes how a step works, but not what it writes, except for rounding."""
AT_THE_END: dict[str, Any] = {"lineage": "end"}
"""``json_schema_extra`` of a field that changes only what a step makes last. If its value changes, the step makes only
that part again, from what it has saved."""


class StepConfig(BaseModel):
    """Base of each ``components/<step>/config.py: Config``: flat int, float, str and bool fields with a description.

    The same fields are the step's KFP parameters, its section of a profile file and its table in the README. All checks
    of a value that need nothing from outside are made here, so that every way to start a step makes them.

    Unless a field is marked NO_EFFECT or AT_THE_END, it is part of the step's lineage: another value under a used run
    id is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    repeatable: ClassVar[bool] = False
    """Whether it is cheap and harmless to repeat the step. Other parameters or inputs under a used run id are then not
    refused, but make the step's next output."""
    looped: ClassVar[tuple[str, ...]] = ()
    """Fields that tell apart the tasks of a step that one pipeline runs several times. The pipeline gives them, not the
    profile."""

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Arm -> the arms of the same seed that must have ended before it."""

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        """The values of ``looped`` in each of those tasks, as the pipeline's loop names them, for these seeds."""
        return []

    @classmethod
    def task_name(cls, step: str, values: Mapping[str, Any]) -> str:
        """The name of a task of ``step``: of its folder in the store, its MLflow run and its progress."""
        return "-".join([step, *(str(values[name]) for name in cls.looped)])

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """``values`` as a config; the one-line MoonflowError names ``where`` they come from, a file or a step."""
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
            if not first["loc"]:  # a rule about several parameters, whose message names them
                raise MoonflowError(f"{where}: {first['ctx']['error']}") from None
            name = ".".join(str(part) for part in first["loc"])
            told = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
            field = cls.model_fields.get(str(first["loc"][0]))
            if first["type"] == "string_pattern_mismatch" and field and not field.is_required() and field.default:
                told += f", as {field.default!r} does"  # an example says more than a regular expression
            if first["type"] == "string_type" and isinstance(first.get("input"), int | float):
                told += ": write it in quotes"
            raise MoonflowError(f"{where}: parameter {name!r}: {told} (got {_shown(first.get('input'))})") from None

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
    """Base of the steps that save checkpoints while they work (``components.runtime.checkpoints.retention``)."""

    keep_last: int = Field(
        2,
        ge=1,
        json_schema_extra=NO_EFFECT,
        description="number of newest checkpoints kept in the store until the step is complete (source: ours)",
    )
    keep_best: str = Field(
        "",
        json_schema_extra=NO_EFFECT,
        description="metric, for example loss/total, whose best checkpoint is kept as well; empty = none (source: "
        "ours)",
    )
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        json_schema_extra=NO_EFFECT,
        description="tokens that a rank sends through the network at once, at least one row; gradients are added up, "
        "so a smaller value saves memory and changes the step by rounding only; 0 = all rows (source: ours)",
    )


def _known_mixture(name: str) -> str:
    try:
        mixtures(name)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return name


MixtureName = Annotated[str, AfterValidator(_known_mixture)]
"""The name of what a recipe makes and reads, in ``model.data.order.mixtures.MIXTURES``."""


def _swarm_families(text: str) -> str:
    for name in text.split(","):
        if name not in SWARM_FAMILIES:
            hint = did_you_mean(name, SWARM_FAMILIES)
            raise ValueError(
                f"{name!r} is no family for a swarm{hint}; write some of {','.join(SWARM_FAMILIES)}, no blanks"
            )
    return text


SwarmFamilies = Annotated[str, AfterValidator(_swarm_families)]
"""Families of tasks that a swarm can divide, with commas between."""


def _task_shares(text: str) -> str:
    try:
        parse_task_shares(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    return text


TaskShares = Annotated[str, AfterValidator(_task_shares)]
"""Tasks of a user's own and their shares of the prompts, as ``model.rl.tasks.names.parse_task_shares`` reads them."""


class ProductsConfig(StepConfig):
    """Base of the steps that train in a precision of matrix products (``model.network.precision``)."""

    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products: float32, or bfloat16 unless the CPU has no instructions for it; "
        "weights are float32 (source: ours)",
    )


class MixtureConfig(ProductsConfig, TrainingConfig):
    """Base of the steps that read a mixture of the families by its name."""

    mixture: MixtureName = Field(
        "short",
        description="families to read and their shares of the tokens: short, for a pre-training of minutes, broad, for "
        "one of an hour, thinking, for a cold start for RL under length budgets, judged, for a judge and for RL with "
        "it, or swarm, for one before PARL in the offline world; the same as prepare_data.mixture (source: ours)",
    )


class FineTuningConfig(MixtureConfig):
    """Base of the steps that fine-tune on conversations (``model.train.fine_tuning``)."""

    tokens_per_row: int = Field(
        512, ge=64, description="sequence length in tokens; what is longer is left out (source: ours)"
    )
    rows: int = Field(8, ge=1, description="sequences per optimizer step (source: ours)")
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts in the forward pass: full, as they are, or int4, rounded as an "
        "INT4 export rounds them (source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )


class EpisodesConfig(StepConfig):
    """Base of the steps that run episodes (``model.rl.failures``)."""

    max_failed_episodes: float = Field(
        0.1,
        ge=0,
        lt=1,
        json_schema_extra=NO_EFFECT,
        description="largest share of episodes that may fail because a tool, a task or an engine's answer is "
        "broken; an evaluation counts them per checkpoint; failed episodes are not trained on, and a "
        "larger share fails the step; a sub-agent that breaks fails no episode (source: ours)",
    )
    sandbox: str = Field(
        "strict",
        pattern="^(strict|unsafe)$",
        json_schema_extra=NO_EFFECT,
        description="confinement of model-written programs: strict refuses to run them where the kernel has no "
        "seccomp filter, unsafe runs them with whatever protection the kernel has (source: ours)",
    )


def _addresses(config: StepConfig, name: str) -> tuple[str, ...]:
    """The addresses in a field; the ValueError does not repeat its value, in which a password may stand."""
    try:
        return parse_addresses(getattr(config, name))
    except MoonflowError as error:
        raise ValueError(f"{name}: {error}") from None


class EngineConfig(StepConfig):
    """Base of the steps that ask an engine: this process's own, or replicas of SGLang."""

    engine: str = Field(
        "embedded",
        pattern="^(embedded|sglang)$",
        description="what generates: embedded, this process itself, or sglang, the servers of endpoints (source: ours)",
    )
    endpoints: str = Field(
        "",
        json_schema_extra=NO_EFFECT,
        description="addresses of the SGLang replicas, with commas between, for example http://rollout.moonflow:30000; "
        "a name with several IPv4 addresses, such as a headless Service, stands for a replica at each of them "
        "(source: ours)",
    )

    @model_validator(mode="after")
    def _engine_and_endpoints(self) -> Self:
        given = _addresses(self, "endpoints")
        if self.engine == "sglang" and not given:
            raise ValueError("engine is 'sglang' and endpoints is empty: give the replicas' addresses in endpoints")
        if self.engine != "sglang" and given:
            raise ValueError(f"endpoints is given and engine is {self.engine!r}: set engine to 'sglang' too")
        return self


class SamplingConfig(EngineConfig):
    """Base of the steps that give the engine weights of their own (``components.runtime.sampler``)."""

    weights_folder: str = Field(
        "",
        pattern="^(/.*)?$",
        json_schema_extra=NO_EFFECT,
        description="folder, as an absolute path, through which SGLang replicas get weights: a shared volume that each "
        "of them has under the same path; empty = the step's own work folder, for replicas on the same machine "
        "(source: ours)",
    )


class SwarmConfig(SamplingConfig):
    """Base of the steps with a second engine, for a swarm's frozen sub-agents."""

    sub_agent_endpoints: str = Field(
        "",
        json_schema_extra=NO_EFFECT,
        description="addresses of the SGLang replicas that speak for the frozen sub-agents, as in endpoints, and other "
        "servers than those; empty = the step itself speaks for them (source: ours)",
    )

    @model_validator(mode="after")
    def _other_servers(self) -> Self:
        given = _addresses(self, "sub_agent_endpoints")
        if given and self.engine != "sglang":
            raise ValueError(f"sub_agent_endpoints is given and engine is {self.engine!r}: set engine to 'sglang' too")
        both = set(given) & set(_addresses(self, "endpoints"))
        if both:
            raise ValueError(f"{min(both)} is in endpoints and sub_agent_endpoints: a server holds one set of weights")
        return self


class PTXConfig(StepConfig):
    """Base of the steps of RL that add a pre-training loss (``model.rl.ptx``)."""

    ptx_weight: float = Field(
        0.5,
        ge=0,
        description="weight of the pre-training loss, added to the policy's loss; 0 = none (source: K2; value ours)",
    )
    ptx_rows: int = Field(1, ge=1, description="full rows of pre-training data per gradient step (source: ours)")


class ExpertPrecisionConfig(StepConfig):
    """Base of the steps of RL that may train for an INT4 export (``model.network.served``)."""

    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts in rollouts and training: full, as they are, or int4, rounded "
        "as an INT4 export rounds them (source: K2-Thinking's post-training; default ours)",
    )


class RLConfig(ExpertPrecisionConfig, PTXConfig, SamplingConfig, EpisodesConfig, TrainingConfig):
    """Base of the steps that train on episodes (``model.rl.trainer``)."""

    micro_batch_tokens: int = Field(
        16384,
        ge=0,
        json_schema_extra=NO_EFFECT,
        description="tokens of episodes sent through the network at once, at least one row; gradients are added up, so "
        "a smaller value saves memory and changes the step by rounding only; 0 = all rows (source: ours)",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=8,
        description="rounds that may be rolled out while an earlier one is learned from; their episodes begin with "
        "weights that are at most so many updates old; 0 = rollouts and updates take turns, and a run repeats bit for "
        "bit (source: partial rollouts of the paper's App. D; value ours)",
    )
    tasks: TaskShares = Field(
        "",
        description="tasks of your own package, as module:name=share with commas between: the share of the prompts "
        "that each of them has, 1 in sum for your tasks alone; empty = none; model/rl/tasks/README.md writes one "
        "(source: ours)",
    )


def known_preset(name: str) -> str:
    """The name of a preset as it is; ValueError if there is none of that name."""
    known = sorted(path.stem for path in PRESETS.glob("*.json"))
    if name not in known:
        raise ValueError(f"there is no such preset{did_you_mean(name, known)}; choose one of {', '.join(known)}")
    return name


class PresetConfig(StepConfig):
    """Base of the steps that make a model of a shape (``model.network.config``)."""

    preset: Annotated[str, AfterValidator(known_preset)] = Field(
        "tiny",
        description="the model's shape, the name of a file in model/network/presets (source: ours; k25 is K2 Table 2)",
    )


def _shown(value: object) -> str:
    """A refused value, without the user and password of a URL, which would stay in the logs."""
    return re.sub(r"://[^/\s]*@", "://...@", repr(value))


def _effect(field: FieldInfo) -> str:
    """The field's mark, "" for one of the lineage."""
    extra = field.json_schema_extra
    return str(extra.get("lineage", "")) if isinstance(extra, dict) else ""


def bounds(field: FieldInfo) -> str:
    """The bounds of a parameter, for example "at least 1, at most 8"; "" if it has none."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "multiple_of": "a multiple of"}
    return ", ".join(
        f"{say} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, say in words.items()
        if getattr(bound, key, None) is not None
    )


def meaning(field: FieldInfo) -> str:
    """What a parameter means, with unit and source, and how large it may be, in one line."""
    limits = bounds(field)
    return " ".join((field.description or "").split()) + (f" [{limits}]" if limits else "")
