"""KFP interface of import_checkpoint."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("import_checkpoint")
def import_checkpoint(
    run_id: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    source: str,
    revision: str,
    later: str = "",
):
    """Bring in a checkpoint to start from, with its tokenizer, image settings and licence, and record its origin.

    As the first step, it also checks the text parameters of all steps (`later`), before anything is trained.
    """
    from components.runtime.kfp.entry import enter

    enter("import_checkpoint", locals(), inputs={}, output=checkpoint, metrics=metrics, card=card)
