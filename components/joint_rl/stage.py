"""Joint RL over text and image tasks with verifiable outcomes (source: K2.5 section on joint multimodal RL).

What is trained, and how, is the shared lines of ``components.outcome_rl.training``. Here a judge may score as well.
"""

from __future__ import annotations

from components.joint_rl.config import Config
from components.joint_rl.judges import UnreadRounds, with_judge
from components.outcome_rl.training import train_on_outcomes
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.data.batches.folder import DataFolder
from model.rl.environment import Scoring


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    def judging(data: DataFolder, verify: Scoring, rubrics: bool) -> Scoring:
        if config.judge and not rubrics:
            context.warn(f"judge {config.judge} has nothing to judge: no task that is asked has a rubric")
        return with_judge(config, inputs, context, data, verify)

    return train_on_outcomes(
        config, inputs, context, modalities=config.modalities.split(","), judging=judging,
        watch=UnreadRounds(context.warn),
    )  # fmt: skip
