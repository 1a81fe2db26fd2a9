"""When should images come, if their number is fixed? Table 1 of K2.5 at our size, as one DAG.

prepare_data -> every arm (early 10:90, mid 20:80, late 50:50) with every seed          finish: the comparison, always

Arms run beside each other, two at once; a failed one fails the run, and the others still finish. Started again with the
same run id, those that are finished are kept.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.finish.component import finish
from components.fusion_arm.arms import cells
from components.fusion_arm.component import fusion_arm
from components.prepare_data.component import prepare_data
from pipelines.dag import MakeTask, pipeline
from pipelines.profile import Profile

AT_ONCE = 2  # also what kfp.local does at most


def fusion_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: ``run.seeds`` of each arm."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            data = task(prepare_data).outputs["data"]
            # Texts, not records: KFP takes a record's values for texts, and the seed is a number.
            with dsl.ParallelFor(cells(profile.run.seeds), name="arms and seeds", parallelism=AT_ONCE) as cell:
                task(fusion_arm, cell=cell, data=data)

    title = f"Early, mid and late fusion of vision under fixed budgets ({profile.run.name})."
    return pipeline(profile, title, recipe)
