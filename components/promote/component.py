"""KFP interface of promote."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("promote")
def promote(
    run_id: str,
    checkpoint: dsl.Input[dsl.Model],
    evals: dsl.Input[dsl.Artifact],
    promotion: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    environment: str,
    model_name: str,
    expert_precision: str,
    image_digest: str,
):
    """Export and sign the checkpoint, register it as candidate, and commit its digest to the GitOps repository."""
    from components.runtime.kfp.entry import enter

    inputs = {"checkpoint": checkpoint, "evals": evals}
    enter("promote", locals(), inputs=inputs, output=promotion, metrics=metrics, card=card)
