"""Outcome RL on images alone, then fine-tuning on its successes, as one DAG: what does it do to vision, and to text?

import_checkpoint -> prepare_data -> zero_vision_sft -> visual_rl -> rejection_sft
                  -> evaluate (all suites, text too, after each step)          finish: always, also after a failure

K2.5 does this before joint RL, as `post_train` does, and finds that text gains as well. The gate says whether nothing
was lost. Nothing is promoted or served.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.finish.component import finish
from components.import_checkpoint.component import import_checkpoint
from components.prepare_data.component import prepare_data
from components.rejection_sft.component import rejection_sft
from components.visual_rl.component import visual_rl as rl_on_images
from components.zero_vision_sft.component import zero_vision_sft
from pipelines.dag import MakeTask, pipeline
from pipelines.profile import Profile


def visual_rl(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: its values are the parameters' defaults, its [task] tables the placement."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="recipe"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            sft = task(zero_vision_sft, data=data, parent=base).outputs["checkpoint"]
            rl = task(rl_on_images, data=data, parent=sft).outputs["checkpoint"]
            tuned = task(rejection_sft, data=data, parent=rl, successes=rl).outputs["checkpoint"]
            task(evaluate, data=data, import_checkpoint=base, zero_vision_sft=sft, visual_rl=rl, rejection_sft=tuned)

    title = f"RL on images, fine-tuning on its successes, and what both do to text ({profile.run.name})."
    return pipeline(profile, title, recipe)
