"""A user's own data, sample by sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from components.runtime.own_data import checked
from model.data.families import FAMILIES
from model.data.own import Checked, ShardPart
from model.data.problems import Note, Problem
from model.data.sample import Sample
from model.data.source import LocalShards
from model.image import ImageConfig, encode_png
from model.rl.tasks import check_task
from tests.corpus import small_tokenizer
from tests.data.odd import record, tar_of

PNG = encode_png(np.zeros((20, 30, 3), np.uint8))


def sample(key: str, png: dict[str, bytes] | None = None) -> Sample:
    show = [{"type": "image", "media": "png"}, {"type": "text", "text": "a cat", "loss": True}]
    return Sample(key, "f", "knowledge", "image", "s", segments=show, media=png or {"png": PNG})


class Panic(BaseException):
    """What a library in Rust raises."""


@dataclass(frozen=True)
class Odd:
    """Samples of which one makes the network's own code raise what nobody expects."""

    error: type[BaseException]
    where: str = "shard odd.tar"

    def samples(self) -> Iterator[Sample | Problem | Note]:
        error = self.error

        class Raising(dict[str, bytes]):
            def __getitem__(self, name: str) -> bytes:
                raise error("a box\nwithout a lid")

        yield sample("good")
        yield sample("bad", Raising(png=PNG))
        yield sample("better")


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, KeyError, OSError, Panic])
def test_whatever_a_record_raises_is_its_own_problem(error: type[BaseException]) -> None:
    first, problem, last = checked(Odd(error), small_tokenizer(), ImageConfig())
    assert isinstance(first, Checked) and isinstance(last, Checked)
    assert (first.sample.key, last.sample.key) == ("good", "better")
    assert isinstance(problem, Problem) and "\n" not in problem.line
    for word in ("odd.tar", "bad", error.__name__, "without a lid"):
        assert word in problem.line


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_record_ends_the_reading(error: type[BaseException]) -> None:
    with pytest.raises(error):
        list(checked(Odd(error), small_tokenizer(), ImageConfig()))


def test_a_task_that_cannot_be_asked_or_judged_is_named(tmp_path: Path) -> None:
    ask, say = {"role": "user", "content": "how many?"}, {"role": "assistant", "content": "5"}
    tasks: list[tuple[dict[str, object], str]] = [
        ({"reward": "number", "answer": "5"}, ""),
        ({"reward": "number", "answer": "five"}, "'number' cannot judge"),
        ({"reward": "number"}, "'number' cannot judge"),
        ({"reward": "table_f1", "answer": [1]}, "'table_f1' cannot judge"),
        ({"reward": "applause", "answer": "5"}, "unknown reward 'applause'"),
        ({"reward": "exact", "answer": "5", "messages": [say]}, "no turn before"),
        ({"reward": "exact", "answer": "5", "environment": {"array": "png"}}, "names no medium: 'png'"),
        ({"reward": "exact", "answer": "5", "environment": {"array": [[1, 2], [3]]}}, "environment.array"),
        ({"reward": "exact", "answer": "5", "environment": {"array": [["1"]]}}, "environment.array"),
        ({"reward": "exact", "answer": "5", "environment": {"records": {"a": 1}}}, "environment.records.a: .*string"),
    ]
    members = [
        (f"t{number}.json", record(f"t{number}", **{"segments": None, "messages": [ask, say], **task}))
        for number, (task, _) in enumerate(tasks)
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(*members))
    part = ShardPart(LocalShards(tmp_path), "a.tar")
    for one, (_, words) in zip(checked(part, small_tokenizer(), ImageConfig()), tasks, strict=True):
        assert isinstance(one, Problem) == bool(words)
        assert not isinstance(one, Problem) or re.search(f"a.tar.*t[0-9].*{words}", one.line), one.line


def test_the_tasks_of_the_families_are_sound() -> None:
    for family in FAMILIES.values():
        check_task(family.sample(0, "train", 0))
