"""Parameters of data preparation."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from components.runtime.config import NO_EFFECT, StepConfig
from model.errors import MoonflowError


def _sources(text: str) -> str:
    if not text.strip():
        return text
    # These bring torch: only who has data of their own waits for it.
    from model.data.families import FAMILIES
    from model.data.own import parse_sources

    try:
        named = parse_sources(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    for source in named:
        if source.name in FAMILIES:
            raise ValueError(f"source {source.name!r} has the name of a built-in family: choose another name")
    return text


class Config(StepConfig):
    text_samples: int = Field(24_000, ge=100, description="training samples of all text families (source: ours)")
    image_samples: int = Field(
        12_000, ge=100, description="training samples of image and video families (source: ours)"
    )
    long_samples: int = Field(
        1_600, ge=100, description="training samples of the families of long texts and videos (source: ours)"
    )
    long_documents: int = Field(
        1_700,
        ge=200,
        description="characters of the longest text; it should nearly fill the longest context (source: ours)",
    )
    long_videos: int = Field(
        50, ge=3, description="chunks of 4 frames of the longest video, about 18 tokens each (source: ours)"
    )
    sources: Annotated[str, AfterValidator(_sources)] = Field(
        "",
        description="your own data, as name=URI or name:weight=URI, separated by commas: a folder or s3:// address of "
        "WebDataset shards in our sample format, or a folder of images with texts; the weight (1) stands beside those "
        "of the built-in families in model/data/mixtures.py",
    )
    eval_samples: int = Field(128, ge=1, description="held-out samples of each family (source: ours)")
    tokenizer_ranks: int = Field(768, ge=256, description="BPE ranks, special slots apart (source: ours; K2: 163584)")
    samples_per_shard: int = Field(1_000, ge=1, description="samples in one tar shard (source: ours)")
    processes: int = Field(
        2,
        ge=1,
        json_schema_extra=NO_EFFECT,
        description="worker processes; the data does not depend on it (source: ours)",
    )
    seed: int = Field(0, ge=0, description="seed of every sample (source: ours)")
