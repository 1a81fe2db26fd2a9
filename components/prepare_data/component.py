"""KFP interface of prepare_data."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("prepare_data")
def prepare_data(
    run_id: str,
    data: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    text_samples: int,
    image_samples: int,
    long_samples: int,
    long_documents: int,
    long_videos: int,
    sources: str,
    eval_samples: int,
    eval_samples_of: str,
    tokenizer_ranks: int,
    samples_per_shard: int,
    processes: int,
    seed: int,
    tokenizer: dsl.Input[dsl.Model] | None = None,
    later: str = "",
):
    """Make the tokenizer and the WebDataset shards; train and eval samples come from separate sources.

    If training starts from a checkpoint, its tokenizer and its image settings are used instead. As the first step, it
    also checks the text parameters of all steps (`later`), before anything is trained.
    """
    from components.runtime.kfp.entry import enter

    enter("prepare_data", locals(), inputs={"tokenizer": tokenizer}, output=data, metrics=metrics, card=card)
