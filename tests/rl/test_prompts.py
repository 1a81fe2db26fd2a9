from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import write_shard
from model.rl.prompts import PromptPool
from tests.samples import make_sample


def sample(family: str, n: int, **fields: Any) -> Sample:
    asked = {"messages": [{"role": "user", "content": "?"}], "answer": "1", "reward": "exact"}
    return make_sample(**{"key": f"{family}-{n}", "family": family, "modality": "text", **asked, **fields})


@pytest.fixture
def data(tmp_path: Path) -> tuple[LocalShards, dict[str, Any]]:
    """Eval shards are listed but do not exist: reading one would fail."""
    families = {
        "qa": [sample("qa", n) for n in range(6)],
        "digits": [sample("digits", n, modality="image", reward="exact" if n % 2 else "") for n in range(6)],
        "tool": [sample("tool", n, ability="coding") for n in range(3)],
        "clip": [sample("clip", n, modality="video") for n in range(3)],
        "prose": [sample("prose", n, reward="") for n in range(3)],
    }
    index: dict[str, Any] = {"families": {}}
    for name, samples in families.items():
        (tmp_path / f"{name}.tar").write_bytes(write_shard(samples))
        entry = {"shard": f"{name}.tar", "samples": len(samples)}
        index["families"][name] = {"train": [entry], "eval": [{"shard": f"eval/{name}.tar", "samples": 3}]}
    return LocalShards(tmp_path), index


def test_abilities_then_families_take_turns_and_documents_are_left_out(data: tuple[Any, Any]) -> None:
    pool = PromptPool(*data, modalities=["text", "image"], seed=0, without=["nothing"])
    drawn = [pool[n] for n in range(12)]
    assert [s.ability for s in drawn] == ["knowledge", "coding"] * 6
    assert [s.family for s in drawn[::2]] == ["digits", "qa"] * 3
    assert all(s.reward for s in drawn)
    assert {s.key for s in drawn if s.family == "digits"} == {"digits-1", "digits-3", "digits-5"}
    assert len({s.key for s in drawn if s.family == "tool"}) == 3


def test_a_draw_depends_on_its_number_alone(data: tuple[LocalShards, dict[str, Any]]) -> None:
    first, second = (PromptPool(*data, modalities=["text"], seed=1) for _ in range(2))
    forwards = [first[n].key for n in range(9)]
    assert [second[n].key for n in reversed(range(9))] == forwards[::-1]
    assert forwards != [PromptPool(*data, modalities=["text"], seed=2)[n].key for n in range(9)]


def test_families_and_modalities_select(data: tuple[LocalShards, dict[str, Any]]) -> None:
    assert PromptPool(*data, modalities=["text"], seed=0).families == {"knowledge": ["qa"], "coding": ["tool"]}
    assert PromptPool(*data, modalities=["text"], seed=0, families=["tool"]).families == {"coding": ["tool"]}
    with pytest.raises(MoonflowError, match="no train shards of family 'wide'"):
        PromptPool(*data, modalities=["text"], seed=0, families=["wide"])
    with pytest.raises(MoonflowError, match="no task of modality text"):
        PromptPool(*data, modalities=["text"], seed=0, families=["prose"])


def test_tasks_that_cannot_be_used_are_left_out(data: tuple[LocalShards, dict[str, Any]]) -> None:
    pool = PromptPool(*data, modalities=["text"], seed=0, families=["qa", "tool"], usable=lambda s: s.key != "qa-2")
    assert {pool[n].key for n in range(40)} == {*(f"qa-{n}" for n in (0, 1, 3, 4, 5)), *(f"tool-{n}" for n in range(3))}
    with pytest.raises(MoonflowError, match="none of the first 6 tasks of qa can be a prompt"):
        PromptPool(*data, modalities=["text"], seed=0, families=["qa"], usable=lambda s: s.family == "tool")


def broken(source: LocalShards, shard: str, key: str) -> None:
    """Makes one sample's JSON unreadable, without moving anything."""
    path = source.folder / shard
    content = path.read_bytes()
    at = content.index(b"{", content.index(f"{key}.json".encode()))
    path.write_bytes(content[:at] + b"!" + content[at + 1 :])


def test_a_sample_that_cannot_be_read_is_named_once_and_passed_over(data: tuple[Any, Any], caplog: Any) -> None:
    """One of 21 samples may be unreadable; the others come in their order, epoch after epoch."""
    before = PromptPool(*data, modalities=["text", "image"], seed=0)
    whole = [before[n] for n in range(60)]
    broken(data[0], "qa.tar", "qa-2")
    pool = PromptPool(*data, modalities=["text", "image"], seed=0)
    drawn = [pool[n].key for n in range(60)]
    for family in ("digits", "tool"):
        assert [key for key in drawn if key.startswith(family)] == [s.key for s in whole if s.family == family]
    found = [key for key in drawn if key.startswith("qa")]
    assert set(found) == {"qa-0", "qa-1", "qa-3", "qa-4", "qa-5"}
    assert found[:5] == [s.key for s in whole if s.family == "qa" and s.key != "qa-2"][:5]
    assert len(caplog.messages) == 1 and "qa-2.json" in caplog.messages[0]


def test_too_many_samples_that_cannot_be_read_are_an_error(data: tuple[Any, Any]) -> None:
    for number in range(2):
        broken(data[0], "qa.tar", f"qa-{number}")
    pool = PromptPool(*data, modalities=["text"], seed=0)
    with pytest.raises(MoonflowError, match=r"2 of 21 samples .* more than 5%.*qa-[01]\.json"):
        [pool[n] for n in range(60)]
