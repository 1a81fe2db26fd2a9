"""What do text-only and what do visual trajectories do for tools on images? Section 2.2 of K2.5, as one DAG.

import_checkpoint -> prepare_data -> the checkpoint before, and every arm (text, narrow) with every seed
                                                                                        finish: the comparison, always

Two arms run at a time. A failed arm fails the run, and the others still finish. A run that is started again with the
same run id keeps its finished arms.
"""

from __future__ import annotations

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.finish.component import finish
from components.import_checkpoint.component import import_checkpoint
from components.prepare_data.component import prepare_data
from components.sft_arm.component import sft_arm
from pipelines.dag import AT_ONCE, MakeTask, pipeline
from pipelines.profile import Profile


def sft_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: the checkpoint before once, and ``run.seeds`` of each other arm."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            # Texts, not records: KFP would turn a record's values into texts, and the seed is a number.
            with dsl.ParallelFor(profile.cells("sft_arm"), name="arms and seeds", parallelism=AT_ONCE) as cell:
                task(sft_arm, cell=cell, data=data, parent=base)

    title = f"Text-only fine-tuning and visual trajectories at equal tokens ({profile.run.name})."
    return pipeline(profile, title, recipe)
