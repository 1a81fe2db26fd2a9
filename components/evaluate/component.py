"""KFP interface of evaluate."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("evaluate")
def evaluate(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    vit_pretrain: dsl.Input[dsl.Model],
    joint_pretrain: dsl.Input[dsl.Model],
    mid_train: dsl.Input[dsl.Model],
    zero_vision_sft: dsl.Input[dsl.Model],
    joint_rl: dsl.Input[dsl.Model],
    parl: dsl.Input[dsl.Model],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    samples: int,
    samples_intermediate: int,
    temperature: float,
    expert_precision: str,
    sandbox: str,
    max_batch: int,
    floors: str,
    champion: str,
    margin: float,
    well_formed: float,
    sigmas: float,
    max_failed_episodes: float,
    seed: int,
) -> str:
    """Held-out scores by ability and modality before and after every stage, and whether to promote."""
    from components.runtime.entry import enter

    inputs = {
        "data": data,
        "vit_pretrain": vit_pretrain,
        "joint_pretrain": joint_pretrain,
        "mid_train": mid_train,
        "zero_vision_sft": zero_vision_sft,
        "joint_rl": joint_rl,
        "parl": parl,
    }
    manifest = enter("evaluate", locals(), inputs=inputs, output=evals, metrics=metrics, card=card)
    return manifest.extra["decision"]
