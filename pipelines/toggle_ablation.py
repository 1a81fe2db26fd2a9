"""How many tokens does Toggle save, and at what price? The paper's Toggle as one DAG.

import_checkpoint -> prepare_data -> zero_vision_sft, a cold start that thinks in a short and in a long style
                                  -> the checkpoint before, and every arm (free, toggle, budget) with every seed
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
from components.toggle_arm.component import toggle_arm
from components.zero_vision_sft.component import zero_vision_sft
from pipelines.dag import AT_ONCE, MakeTask, pipeline
from pipelines.profile import Profile


def toggle_ablation(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: the checkpoint before once, ``run.seeds`` of each other chosen arm."""

    def recipe(task: MakeTask) -> None:
        with dsl.ExitHandler(task(finish), name="ablation"):
            base = task(import_checkpoint).outputs["checkpoint"]
            # The data is read with the checkpoint's own tokenizer and image settings.
            data = task(prepare_data, tokenizer=base).outputs["data"]
            start = task(zero_vision_sft, data=data, parent=base).outputs["checkpoint"]
            # Texts, not records: KFP would turn a record's values into texts, and the seed is a number.
            with dsl.ParallelFor(profile.cells("toggle_arm"), name="arms and seeds", parallelism=AT_ONCE) as cell:
                task(toggle_arm, cell=cell, data=data, parent=start)

    title = f"Toggle and RL without length budgets, on the same prompts ({profile.run.name})."
    return pipeline(profile, title, recipe)
