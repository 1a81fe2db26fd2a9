"""KFP interface of serve."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


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
    endpoint: str,
    start_timeout: float,
    merge_timeout: float,
    alias: str,
):
    """Ask what Git says is promoted one question about a picture, and move the alias champion to it.

    Waits for the merge of the promotion's pull request, and for the endpoint's sync if one is named; the task holds its
    resources meanwhile.
    """
    from components.runtime.entry import enter

    enter("serve", locals(), inputs={"data": data, "promotion": promotion}, output=served, metrics=metrics, card=card)
