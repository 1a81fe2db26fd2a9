"""A user's own data, sample by sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.runtime.datasets.user_data import checked, store_of
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.families import FAMILIES
from model.data.samples.problems import Note, Problem
from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards
from model.data.user.user_data import CheckedSample, ShardPart
from model.rl.task_check import check_task
from tests.corpus import small_tokenizer
from tests.data.user.odd import record, tar_of
from tests.samples import PNG, captioned

SAW = {"type": "function", "function": {"name": "saw"}}


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

        yield captioned(key="good")
        yield captioned(key="bad", media=Raising(png=PNG))
        yield captioned(key="better")


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, KeyError, OSError, Panic])
def test_whatever_a_record_raises_is_its_own_problem(error: type[BaseException]) -> None:
    first, problem, last = checked(Odd(error), small_tokenizer(), ImageConfig())
    assert isinstance(first, CheckedSample) and isinstance(last, CheckedSample)
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
        ({"reward": "exact", "answer": "5", "declared_tools": [SAW]}, "tools that nothing here can run"),
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


def test_a_store_is_opened_once_and_again_for_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    first = store_of("s3://box/chats/")
    assert store_of("s3://box/other/a.jsonl") is first and first.base.bucket == "box"
    assert store_of("s3://chest/chats/").base.bucket == "chest"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:10")
    assert store_of("s3://box/chats/") is not first
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no address")
    with pytest.raises(MoonflowError, match="AWS_ENDPOINT_URL_S3"):
        store_of("s3://box/chats/")
