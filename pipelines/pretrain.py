"""Pre-training alone, as one DAG with the first steps of the K2.5 recipe: the base that post_train starts from.

prepare_data -> vit_pretrain -> joint_pretrain -> mid_train -> evaluate          finish: always, also after a failure

The gate says whether the model passes its floors. Nothing is promoted or served.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.finish.component import finish
from components.joint_pretrain.component import joint_pretrain
from components.mid_train.component import mid_train
from components.prepare_data.component import prepare_data
from components.vit_pretrain.component import vit_pretrain
from pipelines.dag import MakeTask, pipeline
from pipelines.profile import Profile


def pretrain(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: its values are the parameters' defaults, its [task] tables the placement."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="recipe"):
            data = task(prepare_data).outputs["data"]
            vit = task(vit_pretrain, data=data).outputs["checkpoint"]
            joint = task(joint_pretrain, data=data, parent=vit).outputs["checkpoint"]
            mid = task(mid_train, data=data, parent=joint).outputs["checkpoint"]
            task(evaluate, data=data, vit_pretrain=vit, joint_pretrain=joint, mid_train=mid)

    title = f"Pre-train and evaluate a base model by the K2.5 recipe ({profile.run.name})."
    return pipeline(profile, title, recipe)
