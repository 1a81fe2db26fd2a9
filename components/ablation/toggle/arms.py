"""The arms of the Toggle ablation, and what they are measured on (source: K2.5 paper, Toggle; the choice is ours).

Every arm is trained by RL from the same checkpoint, on the same prompts, for the same rounds. They differ in when a
correct answer that is longer than its prompt's budget earns nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model.rl.toggle import Toggle, ToggleConfig

BEFORE, FREE, TOGGLE, BUDGET = "before", "free", "toggle", "budget"
NEVER_OFF = 2**31  # rounds of a budget phase that no training outlasts
LARGER = 4  # the larger budget of the measurement, in smaller ones (source: ours)


@dataclass(frozen=True)
class Arm:
    """One way to train; ``meaning`` is for the reader of a table."""

    name: str
    meaning: str
    trained: bool = True

    def toggle(self, constants: ToggleConfig) -> Toggle | None:
        """The budgets of this arm's training, of which ``constants`` are those of Toggle itself."""
        if self.name == TOGGLE:
            return Toggle(constants)
        if self.name == BUDGET:
            return Toggle(ToggleConfig(accuracy=0.0, every=NEVER_OFF, percentile=constants.percentile))
        return None


ARMS = {
    arm.name: arm
    for arm in (
        Arm(BEFORE, "the checkpoint that the arms start from", trained=False),
        Arm(FREE, "RL on correctness alone"),
        Arm(TOGGLE, "RL with Toggle: a budget in every other phase, where the prompt is answered well"),
        Arm(BUDGET, "RL with the same budgets in every round, however well the prompt is answered"),
    )
}

FAMILIES = {"free_arithmetic": "trained on by RL", "free_reading": "not trained on by RL"}
"""Families that the arms are measured on; the first gives the prompts of training."""
TRAINED_ON, TRANSFER = FAMILIES


def cells(seeds: Iterable[int]) -> list[str]:
    """The checkpoint before once, and the other arms with all seeds, as the pipeline's loop names them."""
    trained = [arm.name for arm in ARMS.values() if arm.trained]
    return [f"{BEFORE}-0", *(f"{arm}-{seed}" for seed in seeds for arm in trained)]
