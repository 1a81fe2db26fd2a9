"""Post-training of a checkpoint that was pre-trained elsewhere, as one DAG with the last steps of the K2.5 recipe.

import_checkpoint -> prepare_data -> zero_vision_sft -> visual_rl -> rejection_sft -> joint_rl -> parl
                  -> evaluate -> (gate) -> promote -> serve          finish: always, also after a failure
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.finish.component import finish
from components.import_checkpoint.component import import_checkpoint
from components.joint_rl.component import joint_rl
from components.parl.component import parl
from components.prepare_data.component import prepare_data
from components.promote.component import promote
from components.rejection_sft.component import rejection_sft
from components.serve.component import serve
from components.visual_rl.component import visual_rl
from components.zero_vision_sft.component import zero_vision_sft
from pipelines.dag import MakeTask, pipeline
from pipelines.profile import Profile


def post_train(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: its values are the parameters' defaults, its [task] tables the placement."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="recipe"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            sft = task(zero_vision_sft, data=data, parent=base).outputs["checkpoint"]
            visual = task(visual_rl, data=data, parent=sft).outputs["checkpoint"]
            tuned = task(rejection_sft, data=data, parent=visual, successes=visual).outputs["checkpoint"]
            rl = task(joint_rl, data=data, parent=tuned).outputs["checkpoint"]
            swarm = task(parl, data=data, policy=rl, sub_agents=sft).outputs["checkpoint"]
            evals = task(
                evaluate,
                data=data,
                import_checkpoint=base,
                zero_vision_sft=sft,
                visual_rl=visual,
                rejection_sft=tuned,
                joint_rl=rl,
                parl=swarm,
            )
            decision = evals.outputs["Output"]  # named so by kfp.local, see pipelines.k25
            with dsl.If(decision == "promote", name="gate"):
                promotion = task(promote, checkpoint=swarm, evals=evals.outputs["evals"])
                task(serve, data=data, promotion=promotion.outputs["promotion"])

    title = f"Post-train, evaluate, promote and serve a checkpoint ({profile.run.name})."
    return pipeline(profile, title, recipe)
