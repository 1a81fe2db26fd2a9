"""The arms of the fusion ablation and the columns of its table (source: K2.5 section 2.1, Table 1).

Every arm sees the same number of vision and of text tokens, but the vision tokens at another time and density.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to spend the vision budget.

    Attributes:
        vision_start: share of training after which vision begins.
        vision_ratio: share of vision tokens from there on.
        paper: Table 1's scores by the name of the column.
    """

    name: str
    vision_start: float
    vision_ratio: float
    paper: dict[str, float]

    @property
    def budget(self) -> float:
        """Share of vision tokens in the whole training."""
        return (1 - self.vision_start) * self.vision_ratio

    @property
    def ratio(self) -> str:
        """Vision to text, as the paper writes it, for example ``10:90``."""
        return f"{round(100 * self.vision_ratio)}:{round(100 * (1 - self.vision_ratio))}"


@dataclass(frozen=True)
class Column:
    """One ability.

    Attributes:
        suites: held-out suites whose greedy scores are averaged.
        families: task families whose held-out losses are averaged.
    """

    name: str
    suites: tuple[str, ...]
    families: tuple[str, ...]


COLUMNS = (
    Column("vision knowledge", ("digit_string", "photo"), ("digit_string", "photo")),
    Column("vision reasoning", ("digit_count", "chart"), ("digit_count", "chart")),
    Column("OCR", ("ocr_line",), ("ocr_line",)),
    Column("text knowledge", ("fact_qa",), ("fact_qa", "fact_prose", "stdlib_text")),
    Column("text reasoning", ("reasoning_gym",), ("reasoning_gym",)),
    Column("code", ("array_tool",), ("array_tool", "stdlib_code")),
)
"""In the order of Table 1. The choice of our suites for each ability is ours."""


def _paper(*scores: float) -> dict[str, float]:
    return dict(zip((column.name for column in COLUMNS), scores, strict=True))


ARMS = {
    arm.name: arm
    for arm in (
        Arm("early", 0.0, 0.1, _paper(25.8, 43.8, 65.7, 45.5, 58.5, 24.8)),
        Arm("mid", 0.5, 0.2, _paper(25.0, 40.7, 64.1, 43.9, 58.6, 24.0)),
        Arm("late", 0.8, 0.5, _paper(24.2, 39.0, 61.5, 43.1, 57.8, 24.0)),
    )
}


def cells(seeds: Iterable[int]) -> list[str]:
    """All arms with all seeds, as the pipeline's loop names them: ``early-0``, ``mid-0``, ..."""
    return [f"{arm}-{seed}" for seed in seeds for arm in ARMS]
