"""Outcome RL on images alone, between zero-vision SFT and joint RL (source: K2.5 section on outcome visual RL).

Successful episodes are kept in the checkpoint; the step rejection_sft fine-tunes on them.
"""

from __future__ import annotations

from components.outcome_rl.training import train_on_outcomes
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.visual_rl.config import Config
from model.rl.successes import Successes


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    kept = Successes(config.kept_successes, config.kept_per_prompt, config.kept_reward)
    return train_on_outcomes(config, inputs, context, modalities=("image",), successes=kept)
