"""Parameters of data preparation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from components.runtime.config import NO_EFFECT, MixtureName, StepConfig
from model.boundary.errors import MoonflowError, did_you_mean
from model.data.order.mixtures import mixtures


def _sources(text: str) -> str:
    if not text.strip():
        return text
    # These import torch: only a run with user data waits for it.
    from model.checkpoint.folder import SUCCESSES
    from model.data.families import FAMILIES
    from model.data.user.user_data import parse_sources

    try:
        named = parse_sources(text)
    except MoonflowError as error:
        raise ValueError(str(error)) from None
    for source in named:
        if source.name in FAMILIES:
            raise ValueError(f"source {source.name!r} has the name of a built-in family: choose another name")
        if source.name == SUCCESSES:
            raise ValueError(f"source {source.name!r} has the name of what visual_rl keeps: choose another name")
    return text


def parse_counts(text: str) -> dict[str, int]:
    """``"digit_string=600, wide_search=300"`` as a dictionary.

    Raises:
        MoonflowError: the text has another form, or a family has two counts.
    """
    found: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, count = (piece.strip() for piece in part.partition("="))
        if not name or not count.isdecimal() or int(count) < 1:
            raise MoonflowError(f"{part!r} is not a count: write family=count, for example digit_string=600")
        if name in found:
            raise MoonflowError(f"{name!r} has two counts: leave one of them out")
        found[name] = int(count)
    return found


HELD_OUT_SEED = 0
"""Of the held-out tasks, whatever the seed of the run is: scores of runs with different seeds can be compared."""


class Config(StepConfig):
    mixture: MixtureName = Field(
        "short",
        description="families to make and their shares of the samples: short, for a pre-training of minutes, broad, "
        "for one of an hour, thinking, for a cold start for RL under length budgets, judged, for a judge and for RL "
        "with it, or swarm, for one before PARL in the offline world; model/data/order/mixtures.py lists them "
        "(source: ours)",
    )
    text_samples: int = Field(
        24_000, ge=100, description="training samples of all text families together (source: ours)"
    )
    image_samples: int = Field(
        12_000, ge=100, description="training samples of all image and video families together (source: ours)"
    )
    long_samples: int = Field(
        1_600,
        ge=100,
        description="training samples of all families of long texts and long videos together (source: ours)",
    )
    long_documents: int = Field(
        1_700,
        ge=200,
        description="characters of the longest text, which should nearly fill the longest context (source: ours)",
    )
    long_videos: int = Field(
        50, ge=3, description="chunks of the longest video; a chunk is 4 frames, about 20 tokens (source: ours)"
    )
    sources: Annotated[str, AfterValidator(_sources)] = Field(
        "",
        description="your own data, as name=URI or name:weight=URI with commas between; a URI is a folder or s3:// "
        "address of WebDataset shards in moonflow's sample format, a folder of images with texts, or a .jsonl file or "
        "a folder of them with conversations, which zero_vision_sft.sources trains on; "
        "weights are relative to those of the built-in families in model/data/order/family_shares.py, 1 if "
        "left out; empty = none (source: ours)",
    )
    eval_samples: int = Field(128, ge=1, description="held-out samples of each family (source: ours)")
    eval_samples_of: str = Field(
        "",
        description="held-out samples of single families, as family=count with commas between, where that is more than "
        "eval_samples: those whose suites evaluate.floors names and evaluate.samples_at_floor measures further; "
        "empty = none (source: ours)",
    )
    tokenizer_ranks: int = Field(
        768,
        ge=256,
        description="byte-pair-encoding ranks of the tokenizer, without special tokens; without effect if the "
        "tokenizer is that of a checkpoint (source: ours; K2: 163584)",
    )
    samples_per_shard: int = Field(1_000, ge=1, description="samples per tar shard (source: ours)")
    processes: int = Field(
        2,
        ge=1,
        json_schema_extra=NO_EFFECT,
        description="worker processes; the data does not depend on their number (source: ours)",
    )
    seed: int = Field(
        0, ge=0, description="seed of every training sample; held-out samples do not depend on it (source: ours)"
    )

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        made = mixtures(self.mixture).made
        try:
            unknown = next((name for name in parse_counts(self.eval_samples_of) if name not in made), "")
        except MoonflowError as error:
            raise ValueError(f"parameter 'eval_samples_of': {error}") from None
        if unknown:
            hint = did_you_mean(unknown, made) or f"; choose from {', '.join(made)}"
            raise ValueError(f"parameter 'eval_samples_of': mixture {self.mixture} makes no {unknown!r}{hint}")
        return self
