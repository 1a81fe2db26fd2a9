"""The arms of the RL ablation, and what they are measured on (source: K2.5 paper, visual and joint RL; choices ours).

The arms of a seed are a chain: each starts from the checkpoint of another, and the first from the imported one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BEFORE, VISUAL, RFT, MORE, JOINT = "before", "visual", "rft", "more_sft", "joint"
STEP = "rl_arm"
"""The step that makes the arms; its tasks are named ``<STEP>-<arm>-<seed>``."""


@dataclass(frozen=True)
class Arm:
    """One step of the chain.

    Attributes:
        meaning: for the reader of a table.
        start: the arm whose checkpoint it starts from; "" for the imported checkpoint.
        successes: the arm whose successful episodes it reads; "" if it reads none.
        rl: whether it is trained by RL; else by fine-tuning.
    """

    name: str
    meaning: str
    start: str = BEFORE
    successes: str = ""
    rl: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms that must have ended before it."""
        return tuple(dict.fromkeys(name for name in (self.start, self.successes) if name))


ARMS = {
    arm.name: arm
    for arm in (
        Arm(BEFORE, "zero-vision SFT of the imported checkpoint, the cold start", start=""),
        Arm(VISUAL, "the cold start after RL on images alone", rl=True),
        Arm(RFT, "the cold start after fine-tuning on the successes of that RL", successes=VISUAL),
        Arm(MORE, "the cold start after as much more of its own SFT"),
        Arm(JOINT, "rft after joint RL on text and images", start=RFT, rl=True),
    )
}
"""In an order in which each arm comes after those that it needs."""


@dataclass(frozen=True)
class Suite:
    """What is said of a held-out suite in the tables."""

    name: str
    ability: str
    modality: str


SUITES = {
    suite.name: suite
    for suite in (
        Suite("array_tool_image", "coding", "image"),
        Suite("scene_box", "reasoning", "image"),
        Suite("digit_count", "reasoning", "image"),
        Suite("ocr_text", "knowledge", "image"),
        Suite("photo", "knowledge", "image"),
        Suite("digit_string", "knowledge", "image"),
        Suite("chart", "reasoning", "image"),
        Suite("fact_qa", "knowledge", "text"),
        Suite("needle", "knowledge", "text"),
        Suite("reasoning_gym", "reasoning", "text"),
        Suite("array_tool", "coding", "text"),
        Suite("sub_search", "agentic", "text"),
    )
}
IMAGES = tuple(name for name, suite in SUITES.items() if suite.modality == "image")
TEXTS = tuple(name for name, suite in SUITES.items() if suite.modality == "text")
PAPER = {"fact_qa": ("MMLU-Pro", 1.7), "reasoning_gym": ("GPQA-Diamond", 2.1), "needle": ("LongBench v2", 2.2)}
"""Suite -> the paper's benchmark of that ability, and the points that it gained there by RL on images."""


def cells(seeds: Iterable[int]) -> list[str]:
    """All arms with all seeds, as their tasks are named."""
    return [f"{arm}-{seed}" for seed in seeds for arm in ARMS]
