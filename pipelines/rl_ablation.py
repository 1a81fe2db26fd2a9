"""What does RL on images do to vision and to text? Visual RL, fine-tuning on its successes and joint RL, as one DAG.

import_checkpoint -> prepare_data -> for every seed: before, a cold start -> visual, RL on images
                                                     before -> rft, on the successes of visual -> joint, joint RL
                                                     before -> more_sft, as much more of its own SFT
                                                                                        finish: the comparison, always

Two seeds run at a time, and the arms of a seed one after another. A failed arm fails the run and those that start from
it; the others still finish. A run that is started again with the same run id keeps its finished arms.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.ablation.cells import arm_of
from components.ablation.rl.arms import ARMS
from components.finish.component import finish
from components.import_checkpoint.component import import_checkpoint
from components.prepare_data.component import prepare_data
from components.rl_arm.component import rl_arm
from pipelines.dag import AT_ONCE, MakeTask, pipeline
from pipelines.profile import Profile


def rl_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: ``run.seeds`` of the arms that ``run.arms`` chooses."""
    chosen = {arm_of(cell) for cell in profile.cells("rl_arm")}

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            # Texts, not numbers: KFP would turn an item into a text anyway.
            seeds = [str(seed) for seed in profile.run.every_seed]
            with dsl.ParallelFor(seeds, name="seeds", parallelism=AT_ONCE) as seed:
                made = {"": base}
                for arm in (arm for arm in ARMS.values() if arm.name in chosen):
                    read = {"successes": made[arm.successes]} if arm.successes else {}
                    trained = task(rl_arm, arm=arm.name, cell=seed, data=data, parent=made[arm.start], **read)
                    made[arm.name] = trained.outputs["checkpoint"]

    title = f"RL on images, fine-tuning on its successes, and joint RL ({profile.run.name})."
    return pipeline(profile, title, recipe)
