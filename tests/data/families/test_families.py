"""What holds for every family: seeded, split by sources, and with answers its own verifier accepts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from model.data.families import FAMILIES
from model.data.families.family import Family
from model.data.order import family_shares
from model.data.samples.sample import ABILITIES, MODALITIES, Sample
from model.data.samples.shards import write_shard
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verify
from tests.shards import read_shard

TEXT = [family for family in FAMILIES.values() if family.modality == "text"]
ALL = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ALL_TEXT = pytest.mark.parametrize("family", TEXT, ids=[family.name for family in TEXT])


def some(family: Family, count: int, split: str = "train", seed: int = 0) -> list[Sample]:
    return [family.sample(seed, split, index) for index in range(count)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


def test_mixtures_are_of_families_by_their_modality() -> None:
    found = {name: mixture for name, mixture in vars(family_shares).items() if name.endswith(("TEXT", "VISION"))}
    assert {"TEXT", "VISION", "BROAD_LONG_TEXT", "PLACES_VISION"} <= set(found)
    for name, mixture in found.items():
        assert mixture and all((FAMILIES[family].modality == "text") == name.endswith("TEXT") for family in mixture)


@ALL
def test_sources_are_split(family: Family) -> None:
    train, held_out = family.sources("train"), family.sources("eval")
    assert train and held_out
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)


@ALL_TEXT
@pytest.mark.parametrize("split", ["train", "eval"])
def test_samples_come_from_the_splits_sources(family: Family, split: str) -> None:
    samples = some(family, 150, split)
    allowed = set(family.sources(split))  # type: ignore[arg-type]
    assert {sample.source for sample in samples} <= allowed
    assert len({sample.key for sample in samples}) == len(samples)
    for sample in samples:
        assert (sample.family, sample.ability, sample.modality) == (family.name, family.ability, family.modality)
        assert sample.ability in ABILITIES and sample.modality in MODALITIES


@ALL
def test_a_sample_depends_on_seed_split_and_index_alone(family: Family) -> None:
    first = some(family, 4)
    assert [family.sample(0, "train", index) for index in (3, 2, 1, 0)] == first[::-1]
    contents = [(sample.segments, sample.messages, sample.media) for sample in first]
    assert [(s.segments, s.messages, s.media) for s in some(family, 4, seed=1)] != contents
    assert [(s.segments, s.messages, s.media) for s in some(family, 4, "eval")] != contents


@ALL_TEXT
def test_samples_vary(family: Family) -> None:
    contents = [str((sample.segments, sample.messages)) for sample in some(family, 300)]
    assert len(set(contents)) >= 0.9 * len(contents)


@pytest.mark.parametrize("family", [f for f in TEXT if f.kind == "task"] + [FAMILIES["array_tool_image"]])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_gold_answer_gets_the_full_reward(family: Family, split: str, toolset: Toolset) -> None:
    async def judged(sample: Sample) -> None:
        assert await verify(sample, sample.messages[-1]["content"], toolset) == 1.0
        assert await verify(sample, "something else", toolset) < 1.0

    for sample in some(family, 32 if family.name == "coding" else 100, split):
        assert sample.messages[-1]["role"] == "assistant"
        asyncio.run(judged(sample))


@ALL
def test_samples_survive_a_shard(family: Family) -> None:
    samples = some(family, 5)
    assert list(read_shard(write_shard(samples))) == samples
