"""The worker process that makes batches ahead: how it fails, and how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
import torch

from model.boundary.errors import MoonflowError, Transient
from model.data.batches.folder import DataFolder
from model.data.batches.stream import MixtureStream
from model.data.samples.shard_source import LocalShards
from tests.tiny_folders import write_training_folder

ROOT = Path(__file__).parents[3]
TRAINER = """
import multiprocessing, signal, sys
from pathlib import Path
from tests.data.batches.test_prefetch import opened

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    batches = opened(Path(sys.argv[1])).batches(1000, prefetch=True)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.readline()
    print(sum(1 for _ in zip(range(20), batches)), flush=True)
"""
# The worker imports the program that started it. Without `if __name__ == "__main__"` this one starts a trainer there,
# which Python refuses, so the worker dies before it has read what it is given: more than a pipe holds.
UNGUARDED = """
import sys
from pathlib import Path
from model.data.samples.shard_source import LocalShards
from tests.data.batches.test_prefetch import opened

source = LocalShards(Path(sys.argv[1]))
source.more = bytes(1 << 20)
next(opened(Path(sys.argv[1]), source).batches(1000, prefetch=True))
"""


class Away(LocalShards):
    def open(self, shard: str) -> BinaryIO:
        raise Transient(f"{shard}: the store does not answer")


class Bug(LocalShards):
    def open(self, shard: str) -> BinaryIO:
        raise AssertionError("nobody thought of it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_folder(tmp_path_factory.mktemp("data"), ("recall",))


def opened(folder: Path, source: LocalShards | None = None) -> MixtureStream:
    """A stream; its shards come from ``source`` once they are measured."""
    data = DataFolder(folder)
    for entry in data.entries("recall", "train"):
        data.lengths(entry)
    data.source = source or data.source
    return data.mixture({"recall": 1.0}, tokens_per_row=128, rows=2, seed=0)(None)


@pytest.fixture
def trainer(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process that has taken one batch and takes more when it reads a line; and its worker."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, psutil.Process(int(process.stdout.readline()))
        process.kill()


def test_the_trainers_random_state_and_signal_handler_stay_and_the_worker_ends(folder: Path) -> None:
    before, handler = torch.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    assert len(list(opened(folder).batches(3, prefetch=True))) == 3
    assert torch.equal(torch.get_rng_state(), before) and signal.getsignal(signal.SIGCHLD) == handler
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_told_in_one_line(folder: Path) -> None:
    batches = opened(folder).batches(1000, prefetch=True)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(MoonflowError, match="batches ended.*memory.*last checkpoint") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_a_worker_that_dies_at_its_start_is_told_and_not_waited_for(folder: Path, tmp_path: Path) -> None:
    (script := tmp_path / "unguarded.py").write_text(UNGUARDED)
    command, environment = [sys.executable, str(script), str(folder)], {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and "the process that makes batches ended before its work was done" in ran.stderr


def test_an_error_of_the_worker_arrives_as_it_was_raised(folder: Path) -> None:
    with pytest.raises(Transient, match=r"^train/recall-00000\.tar: the store does not answer$"):
        next(opened(folder, Away(folder)).batches(5, prefetch=True))
    with pytest.raises(RuntimeError, match=r"(?s)in the worker process.*Traceback.*nobody thought of it"):
        next(opened(folder, Bug(folder)).batches(5, prefetch=True))
    assert not multiprocessing.active_children()


def test_the_worker_ends_with_a_trainer_that_sigkill_ends(
    trainer: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    process, worker = trainer
    process.kill()
    worker.wait(20)  # raises psutil.TimeoutExpired


def test_signals_to_the_group_leave_the_worker_to_the_trainer(
    trainer: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    """They ask a trainer to end after its step, for which it may still want a batch."""
    process, _ = trainer
    assert process.stdin is not None and process.stdout is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    process.stdin.write("go on\n")
    process.stdin.close()
    assert process.stdout.readline() == "20\n"
