from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.runtime.checkpoints.manifest import fetch
from components.runtime.step import read_metrics, run_step
from components.runtime.store import s3
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.services import Services
from tests.counted import Died, Stage, counting
from tests.faults.proxy import KINDS, FlappingStore

pytestmark = pytest.mark.services

WEIGHTS = 200_000  # bytes a checkpoint: enough that an answer can break off in the middle


@pytest.fixture
def flapping(
    step_environment: str, services: Services, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FlappingStore]:
    """The proxy in the place of the store; with parameter n it spoils every n-th request."""
    # The same retries as in production, but a request counts as lost after one second of silence instead of thirty.
    monkeypatch.setattr(s3, "READ_S", 1)
    monkeypatch.setattr(s3, "CHECK_READ_S", 1)
    with FlappingStore(services.environment["AWS_ENDPOINT_URL_S3"], every=getattr(request, "param", 0)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.address)
        yield proxy


def counts(store: ObjectStore, uri: str, folder: Path) -> list[int]:
    """The steps in the history of a manifest, read without the proxy; every file is verified."""
    fetch(store, uri, folder)
    return [row["step"] for row in read_metrics(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("flapping", [4], indirect=True)
def test_a_step_continues_while_every_fourth_request_fails(
    flapping: FlappingStore, store: ObjectStore, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    define(counting(dies_at=5, size=WEIGHTS))
    with pytest.raises(Died):
        run_step("counted", {"steps": 8})
    define(counting(size=WEIGHTS))
    made = run_step("counted", {"steps": 8})
    assert set(flapping.spoiled) == set(KINDS), flapping.spoiled
    assert made.complete and counts(store, made.uri, tmp_path / "got") == [1, 2, 3, 4, 5, 6, 7, 8]


def test_objects_survive_each_fault(flapping: FlappingStore, store: ObjectStore, tmp_path: Path) -> None:
    flapping.every = 5  # no divisor of the six requests of a round: each of them is hit in turn
    through = open_store()
    data = os.urandom(WEIGHTS)
    (tmp_path / "one").write_bytes(data)
    for number in range(12):
        key = f"flapping/{number}"
        through.upload(tmp_path / "one", key)
        assert through.get(key) == data == store.get(key)
        through.download(key, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        assert through.exists(key) and through.list(key) == [key]
    assert set(flapping.spoiled) == set(KINDS), flapping.spoiled


def test_an_answer_lost_on_the_way_does_not_lose_the_manifest(
    flapping: FlappingStore, store: ObjectStore, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the manifest, but the step gets no answer and asks again: it must recognise its own manifest."""

    def lose_manifests(command: str, path: str) -> str:
        if command != "PUT" or not path.endswith("/manifest.json") or path in lost:
            return ""
        lost.append(path)
        return "lost"

    lost: list[str] = []
    monkeypatch.setattr(flapping, "choose", lose_manifests)
    define(counting())
    made = run_step("counted", {"steps": 4})
    assert len(lost) == 2 and made.complete and made.index == 1
    assert store.exists(f"{made.uri}/manifest.json")


def test_a_store_that_is_away_is_waited_for_half_a_minute(
    flapping: FlappingStore, step_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, waits = open_store(), list[float]()
    flapping.away.set()
    monkeypatch.setattr(random, "random", lambda: 0.5)  # the mean of each wait
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(MoonflowError, match="cannot be reached"):
        through.get("flapping/none")
    assert sum(waits) == pytest.approx(31.5)


@pytest.mark.slow
def test_an_outage_in_the_middle_of_a_step_is_waited_out(
    flapping: FlappingStore, store: ObjectStore, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    def outage(done: int) -> None:
        if done == 4:  # a checkpoint is due
            flapping.away.set()
            threading.Timer(1.5, flapping.away.clear).start()

    define(counting(meanwhile=outage))
    made = run_step("counted", {"steps": 6})
    assert made.complete and counts(store, made.uri, tmp_path / "got") == [1, 2, 3, 4, 5, 6]


def test_a_store_that_stays_away_ends_the_step_with_one_line_and_loses_nothing(
    flapping: FlappingStore,
    store: ObjectStore,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)  # or it would wait half a minute

    def outage(done: int) -> None:
        if done == 4:
            flapping.away.set()

    define(counting(meanwhile=outage))
    with pytest.raises(
        MoonflowError, match=r"object store at http://127.0.0.1:\d+ cannot be reached for s3://"
    ) as raised:
        run_step("counted", {"steps": 6})
    assert "\n" not in str(raised.value)
    with pytest.raises(MoonflowError, match="cannot be reached"):
        run_step("counted", {"steps": 6})
    flapping.away.clear()
    begun: list[int] = []
    define(counting(meanwhile=begun.append))
    made = run_step("counted", {"steps": 6})
    assert begun == [3, 4, 5, 6], "it continued from the checkpoint before the outage"
    assert counts(store, made.uri, tmp_path / "got") == [1, 2, 3, 4, 5, 6]


def test_a_store_that_only_answers_500_says_where_to_look(
    flapping: FlappingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setattr(flapping, "choose", lambda command, path: "error")
    with pytest.raises(MoonflowError, match="could not serve .*InternalError.*its disk may be full.*then run again"):
        open_store().put("flapping/never", b"x")
