"""KFP interface of serve."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("serve")
def serve(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    promotion: dsl.Input[dsl.Artifact],
    served: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    environment: str,
    model_name: str,
    family: str,
    max_tokens: int,
    engine: str,
    endpoints: str,
    endpoint: str,
    start_timeout: float,
    merge_timeout: float,
    alias: str,
):
    """Ask the checkpoint that Git names as promoted one question about a picture, and move the alias champion to it.

    The task waits for the merge of the promotion's pull request, and for the sync of the endpoint if one is named. It
    holds its resources meanwhile.
    """
    from components.runtime.kfp.entry import enter

    enter("serve", locals(), inputs={"data": data, "promotion": promotion}, output=served, metrics=metrics, card=card)
