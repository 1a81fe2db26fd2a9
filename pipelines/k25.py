"""The K2.5 recipe as one DAG, which compiles for a cluster and runs under kfp.local.

prepare_data -> vit_pretrain -> joint_pretrain -> mid_train
             -> zero_vision_sft -> visual_rl -> rejection_sft -> joint_rl -> parl
             -> evaluate -> (gate) -> promote -> serve          finish: always, also after a failure
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.finish.component import finish
from components.joint_pretrain.component import joint_pretrain
from components.joint_rl.component import joint_rl
from components.mid_train.component import mid_train
from components.parl.component import parl
from components.prepare_data.component import prepare_data
from components.promote.component import promote
from components.rejection_sft.component import rejection_sft
from components.serve.component import serve
from components.visual_rl.component import visual_rl
from components.vit_pretrain.component import vit_pretrain
from components.zero_vision_sft.component import zero_vision_sft
from pipelines.dag import MakeTask, pipeline
from pipelines.profile import Profile


def k25(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: its values are the parameters' defaults, its [task] tables the placement."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="recipe"):
            data = task(prepare_data).outputs["data"]
            vit = task(vit_pretrain, data=data).outputs["checkpoint"]
            joint = task(joint_pretrain, data=data, parent=vit).outputs["checkpoint"]
            mid = task(mid_train, data=data, parent=joint).outputs["checkpoint"]
            sft = task(zero_vision_sft, data=data, parent=mid).outputs["checkpoint"]
            visual = task(visual_rl, data=data, parent=sft).outputs["checkpoint"]
            tuned = task(rejection_sft, data=data, parent=visual, successes=visual).outputs["checkpoint"]
            rl = task(joint_rl, data=data, parent=tuned).outputs["checkpoint"]
            swarm = task(parl, data=data, policy=rl, sub_agents=sft).outputs["checkpoint"]
            evals = task(
                evaluate,
                data=data,
                vit_pretrain=vit,
                joint_pretrain=joint,
                mid_train=mid,
                zero_vision_sft=sft,
                visual_rl=visual,
                rejection_sft=tuned,
                joint_rl=rl,
                parl=swarm,
            )
            # kfp.local finds a condition's operand only if it is named Output, as that of a plain `-> str` is.
            decision = evals.outputs["Output"]
            with dsl.If(decision == "promote", name="gate"):
                promotion = task(promote, checkpoint=swarm, evals=evals.outputs["evals"])
                task(serve, data=data, promotion=promotion.outputs["promotion"])

    title = f"Train, evaluate, promote and serve by the K2.5 recipe ({profile.run.name})."
    return pipeline(profile, title, recipe)
