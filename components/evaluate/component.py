"""KFP interface of evaluate."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("evaluate")
def evaluate(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    samples: int,
    samples_at_floor: int,
    samples_intermediate: int,
    tasks: str,
    temperature: float,
    expert_precision: str,
    engine: str,
    endpoints: str,
    weights_folder: str,
    sub_agent_endpoints: str,
    sandbox: str,
    max_batch: int,
    floors: str,
    champion: str,
    margin: float,
    well_formed: float,
    sigmas: float,
    max_failed_episodes: float,
    seed: int,
    import_checkpoint: dsl.Input[dsl.Model] | None = None,
    vit_pretrain: dsl.Input[dsl.Model] | None = None,
    joint_pretrain: dsl.Input[dsl.Model] | None = None,
    mid_train: dsl.Input[dsl.Model] | None = None,
    zero_vision_sft: dsl.Input[dsl.Model] | None = None,
    visual_rl: dsl.Input[dsl.Model] | None = None,
    rejection_sft: dsl.Input[dsl.Model] | None = None,
    joint_rl: dsl.Input[dsl.Model] | None = None,
    parl: dsl.Input[dsl.Model] | None = None,
) -> str:
    """Score the model before and after every stage on held-out tasks, and decide whether to promote it."""
    from components.runtime.kfp.entry import enter

    inputs = {
        "data": data,
        "import_checkpoint": import_checkpoint,
        "vit_pretrain": vit_pretrain,
        "joint_pretrain": joint_pretrain,
        "mid_train": mid_train,
        "zero_vision_sft": zero_vision_sft,
        "visual_rl": visual_rl,
        "rejection_sft": rejection_sft,
        "joint_rl": joint_rl,
        "parl": parl,
    }
    manifest = enter("evaluate", locals(), inputs=inputs, output=evals, metrics=metrics, card=card)
    return manifest.extra["decision"]
