"""What the ranks of a training step divide among them (source: ours).

ZeRO: arXiv 1910.02054. Sequence parallel: DeepSpeed-Ulysses, arXiv 2309.14509. Imports nothing heavy: profiles are
checked with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.boundary.errors import MoonflowError


@dataclass(frozen=True)
class Layout:
    """What is divided. The result of a step does not depend on it, so a run may continue under another layout.

    Attributes:
        zero_stage: 0 every rank holds everything; 1 the optimizer's state is divided; 2 gradients too; 3 weights too.
        expert_parallel: ranks that share one copy of the routed experts.
        sequence_parallel: ranks that share one row.
    """

    zero_stage: int = 0
    expert_parallel: int = 1
    sequence_parallel: int = 1

    def check(self, world: int) -> None:
        """Raise MoonflowError, naming the key, if a value does not fit ``world`` ranks."""
        if self.zero_stage not in (0, 1, 2, 3):
            raise MoonflowError(f"zero_stage = {self.zero_stage}: choose 0, 1, 2 or 3")
        for key in ("expert_parallel", "sequence_parallel"):
            size = getattr(self, key)
            if size < 1 or world % size:
                raise MoonflowError(f"{key} = {size} does not divide {world} ranks: choose a divisor")
