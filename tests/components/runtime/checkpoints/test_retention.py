from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.runtime.checkpoints.manifest import Manifest, publish
from components.runtime.checkpoints.retention import METRICS, Retention, best
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from tests.published import checkpoints_of_step, manifest_of, write_text_checkpoint

pytestmark = pytest.mark.services

Save = Callable[..., Manifest]


@pytest.fixture
def run() -> str:
    return f"retention/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def saving(store: ObjectStore, run: str, tmp_path: Path) -> Callable[[Retention], Save]:
    """``save(index, loss=, complete=)`` of a step with a retention."""

    def with_retention(retention: Retention) -> Save:
        saved = checkpoints_of_step(store, run, "train", tmp_path / "cache", retention)

        def save(index: int, loss: float | None = None, complete: bool = False) -> Manifest:
            folder = write_text_checkpoint(tmp_path / f"{index}", f"weights {index}")
            extra = {} if loss is None else {METRICS: {"loss/total": loss}}
            outgoing = saved.begin(index=index, kind="checkpoint", complete=complete, extra=extra)
            return outgoing.publish(folder)

        return save

    return with_retention


def kept(store: ObjectStore, run: str) -> list[int]:
    names = {key.removeprefix(f"{run}/train/").split("/")[0] for key in store.list(f"{run}/train/")}
    return sorted(map(int, names))


def put(store: ObjectStore, tmp_path: Path, prefix: str, **fields: Any) -> Manifest:
    """Another step's output."""
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(prefix))
    return publish(store, prefix, folder, run_id="other", step="other", index=0, **fields)


def test_the_last_ones_stay(store: ObjectStore, run: str, saving: Callable[[Retention], Save]) -> None:
    save = saving(Retention(last=3))
    for index in range(6):
        save(index, complete=index == 1)
        assert kept(store, run) == [n for n in range(index + 1) if n == 1 or n > index - 3]


def test_the_best_stays(store: ObjectStore, run: str, saving: Callable[[Retention], Save]) -> None:
    save = saving(Retention(last=1, best="loss/total"))
    for index, loss in enumerate([3.0, 2.0, 2.5, float("nan"), 2.0, 2.2, None]):
        save(index, loss)
    assert kept(store, run) == [4, 6], "the newest of the two best, and the newest"


def test_a_metric_that_nobody_logs_is_told(saving: Callable[[Retention], Save]) -> None:
    save = saving(Retention(last=1, best="loss/held_out"))
    save(0, 2.0)
    with pytest.raises(MoonflowError, match="keep_best = 'loss/held_out': no checkpoint .* they have loss/total"):
        save(1, 1.0)


def test_a_parent_stays_whoever_names_it(
    store: ObjectStore, run: str, saving: Callable[[Retention], Save], tmp_path: Path
) -> None:
    save = saving(Retention(last=1))
    put(store, tmp_path, f"{run}-other/evals/0", kind="evals", parents=("0" * 64, save(0).sha256))
    save(1)
    assert kept(store, run) == [0, 1]
    put(store, tmp_path, f"{run}/data/0", kind="data", parents=(save(2).sha256,))
    save(3)
    assert kept(store, run) == [0, 2, 3], "what is named later counts, too"
    store.delete(f"{run}-other/evals/0/manifest.json")
    save(4)
    assert kept(store, run) == [2, 4], "nobody names 0 any more"


def test_what_is_promoted_stays(
    store: ObjectStore, run: str, saving: Callable[[Retention], Save], tmp_path: Path
) -> None:
    save = saving(Retention(last=1))
    named = {"manifest_sha256": save(0).sha256}
    put(store, tmp_path, f"{run}/promote/0", kind="promotion", extra=named)
    unrelated = {"manifest_sha256": save(1).sha256}
    assert kept(store, run) == [0, 1]
    put(store, tmp_path, f"{run}/evaluate/0", kind="evals", extra=unrelated)
    save(2)
    assert kept(store, run) == [0, 2], "only a promotion's record counts"


def test_damaged_manifests_hold_nothing_up(
    store: ObjectStore, run: str, saving: Callable[[Retention], Save], tmp_path: Path
) -> None:
    save = saving(Retention(last=1))
    store.put(f"{run}/elsewhere/0/manifest.json", b"{")
    save(0)
    save(1)
    store.put(f"{run}/train/1/manifest.json", b"{")
    save(2)
    assert kept(store, run) == [1, 2], "one that cannot say what it was is left alone"


def test_best_is_lowest_for_losses_and_highest_for_the_rest() -> None:
    def told(**values: float) -> Manifest:
        return manifest_of("s", extra={METRICS: {name.replace("_", "/"): value for name, value in values.items()}})

    found = {0: told(loss_text=2.0, reward_mean=0.1), 1: told(loss_text=1.0), 2: told(loss_text=3.0, reward_mean=0.5)}
    assert best(found, "loss/text") == 1 and best(found, "reward/mean") == 2
    assert best(found, "absent") is None and best(found, "") is None
