"""What does PARL make of a swarm in the offline world, and what does PARL need for it? K2.5's Agent Swarm, as one DAG.

import_checkpoint -> prepare_data -> for every seed: swarm_start -> every arm of that seed
                                                                                        finish: the comparison, always

Two seeds run at a time, and the arms of a seed one after another; each starts from the cold start of its seed. A failed
arm fails the run, and the others still finish. A run that is started again with the same run id keeps its finished
arms.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.ablation.cells import arm_of
from components.finish.component import finish
from components.import_checkpoint.component import import_checkpoint
from components.prepare_data.component import prepare_data
from components.swarm_arm.component import swarm_arm
from components.swarm_start.component import swarm_start
from pipelines.dag import AT_ONCE, MakeTask, pipeline
from pipelines.profile import Profile


def swarm_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: ``run.seeds`` of the arms that ``run.arms`` chooses."""
    arms = list(dict.fromkeys(arm_of(cell) for cell in profile.cells("swarm_arm")))

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            with dsl.ParallelFor(profile.cells("swarm_start"), name="seeds", parallelism=AT_ONCE) as cell:
                start = task(swarm_start, cell=cell, data=data, parent=base).outputs["checkpoint"]
                # An arm reads its seed off its parent: kfp.local gives a loop within a loop nothing of the outer item.
                with dsl.ParallelFor(arms, name="arms of a seed", parallelism=1) as arm:
                    task(swarm_arm, cell=arm, data=data, parent=start)

    title = f"A swarm in the offline world, trained by PARL and by parts of it ({profile.run.name})."
    return pipeline(profile, title, recipe)
