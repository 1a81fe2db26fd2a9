"""KFP interface of prepare_data."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("prepare_data")
def prepare_data(
    run_id: str,
    data: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    text_samples: int,
    image_samples: int,
    long_samples: int,
    long_documents: int,
    long_videos: int,
    sources: str,
    eval_samples: int,
    tokenizer_ranks: int,
    samples_per_shard: int,
    processes: int,
    seed: int,
    later: str = "",
):
    """Tokenizer and WebDataset shards from the embedded corpora, train and eval from separate sources.

    As the first step it also checks the texts among all steps' parameters (`later`), before anything is trained.
    """
    from components.runtime.entry import enter

    enter("prepare_data", locals(), inputs={}, output=data, metrics=metrics, card=card)
