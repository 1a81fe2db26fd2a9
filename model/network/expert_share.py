"""Which of the routed experts a process holds (source: GShard, arXiv 2006.16668). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from model.boundary.errors import MoonflowError


@dataclass(frozen=True)
class ExpertShare:
    """Part ``number`` of ``parts`` equal parts of every layer's experts, which are neighbours."""

    number: int = 0
    parts: int = 1

    def of(self, experts: int) -> range:
        """Which of so many experts the part has, numbered from 0; MoonflowError if they do not divide evenly."""
        if experts % self.parts:
            raise MoonflowError(
                f"{experts} routed experts do not divide among {self.parts} ranks: choose an expert_parallel that "
                "divides n_routed_experts"
            )
        size = experts // self.parts
        return range(self.number * size, (self.number + 1) * size)


ALL_EXPERTS = ExpertShare()
"""What one process by itself holds."""
