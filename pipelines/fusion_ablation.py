"""When should training see images, if their number is fixed? Table 1 of K2.5 at our size, as one DAG.

prepare_data -> every arm (early 10:90, mid 20:80, late 50:50) with every seed          finish: the comparison, always

Two arms run at a time. A failed arm fails the run, and the others still finish. A run that is started again with the
same run id keeps its finished arms.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.finish.component import finish
from components.fusion_arm.component import fusion_arm
from components.prepare_data.component import prepare_data
from pipelines.dag import AT_ONCE, MakeTask, pipeline
from pipelines.profile import Profile


def fusion_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: ``run.seeds`` of each arm."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            data = task(prepare_data).outputs["data"]
            # Texts, not records: KFP would turn a record's values into texts, and the seed is a number.
            with dsl.ParallelFor(profile.cells("fusion_arm"), name="arms and seeds", parallelism=AT_ONCE) as cell:
                task(fusion_arm, cell=cell, data=data)

    title = f"Early, mid and late fusion of vision under fixed budgets ({profile.run.name})."
    return pipeline(profile, title, recipe)
