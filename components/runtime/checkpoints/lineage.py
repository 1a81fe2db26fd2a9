"""Whether an earlier output of a step can be reused: it can if it was made from the same parameters and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.config import StepConfig
from model.boundary.errors import MoonflowError


@dataclass(frozen=True)
class Lineage:
    """What a step is made from: it decides whether an earlier output may be reused or resumed.

    Attributes:
        origin: where the imported checkpoint came from that the inputs were made from; empty if they were not.
    """

    config: StepConfig
    inputs: Mapping[str, str]
    parents: tuple[str, ...]
    git_commit: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, earlier: Manifest) -> bool:
        """Whether ``earlier`` is a part of this step's work, from which it can continue."""
        return not self._changes(earlier)

    def is_done_by(self, earlier: Manifest) -> bool:
        """Whether ``earlier`` is what this step would write."""
        return earlier.complete and self.fits(earlier) and not _differing(self.config.ending, earlier)

    def require(self, earlier: Manifest) -> None:
        """MoonflowError that names what changed since ``earlier`` was written under the same run id.

        A repeatable step does its work again instead.
        """
        if self.config.repeatable or not (changes := self._changes(earlier)):
            return
        raise MoonflowError(
            f"step {earlier.step} of run {earlier.run_id} was started with other parameters "
            f"({'; '.join(changes)}): restore them or use a new run id"
        )

    def _changes(self, earlier: Manifest) -> list[str]:
        changes = _differing(self.config.lineage, earlier)
        if earlier.parents != self.parents:
            changes.append(f"inputs {earlier.extra.get('inputs')} -> {dict(self.inputs)}")
        return changes


def _differing(values: Mapping[str, Any], earlier: Manifest) -> list[str]:
    # Values are compared, not digests, because another version may compute the digest from other fields.
    old = earlier.extra.get("config", {})
    return [f"{key} {old.get(key)!r} -> {value!r}" for key, value in values.items() if old.get(key) != value]
