"""The arms of the SFT ablation, and what they are measured on (source: K2.5 section 2.2; the choice of suites is ours).

Every arm is fine-tuned from the same checkpoint, with the same number of tokens. They differ in what the image programs
are: texts alone, or half of them hand-made trajectories that show the picture, few kinds in one form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model.data.order.shares import Mixture

BEFORE, TEXT, NARROW = "before", "text", "narrow"
PROGRAMS, NARROW_PROGRAMS = "image_program", "narrow_program_image"  # families


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        meaning: for the reader of a table.
        narrow: part of the image programs' share that hand-made visual trajectories have instead.
        trained: False for the checkpoint that all arms start from.
    """

    name: str
    meaning: str
    narrow: float = 0.0
    trained: bool = True

    def mixture(self, trajectories: Mixture) -> Mixture:
        """Shares of the tokens of this arm's training."""
        share = trajectories[PROGRAMS]
        parts = {PROGRAMS: share * (1 - self.narrow), NARROW_PROGRAMS: share * self.narrow}
        return {**trajectories, **{name: weight for name, weight in parts.items() if weight}}


ARMS = {
    arm.name: arm
    for arm in (
        Arm(BEFORE, "the checkpoint that the arms start from", trained=False),
        Arm(TEXT, "text-only trajectories"),
        Arm(NARROW, "half of the image programs are hand-made and show the picture", narrow=0.5),
    )
}

TWINS = ("image_program_image", "array_tool_image")
"""Suites of tool use on images; the families of SFT have the same questions without the image."""
VISION = {
    "digit_string": "digit strings",
    "digit_tally": "counting",
    "digit_count": "counting, few digits",
    "ocr_text": "reading",
    "scene_box": "boxes",
}
"""Suites of what must not wear down, and what they are called."""
SUITES = (*TWINS, *VISION)


def cells(seeds: Iterable[int]) -> list[str]:
    """The checkpoint before once, and the other arms with all seeds, as the pipeline's loop names them."""
    trained = [arm.name for arm in ARMS.values() if arm.trained]
    return [f"{BEFORE}-0", *(f"{arm}-{seed}" for seed in seeds for arm in trained)]
