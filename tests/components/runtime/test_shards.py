"""Shards from the object store: on demand, verified, in a bounded cache; and a stream that reads them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.runtime import manifest as manifests
from components.runtime.shards import StoredShards, open_data
from components.runtime.store import ObjectStore
from model.data.families import FAMILIES
from model.data.folder import DataFolder
from model.data.shards import write_shard
from model.data.source import BrokenShard
from model.errors import MoonflowError
from tests.corpus import small_tokenizer

pytestmark = pytest.mark.services
NAMES = ("recall", "fact_qa")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two families in three shards of ten samples."""
    made = tmp_path / "made"
    (made / "train").mkdir(parents=True)
    small_tokenizer().save(made)
    families: dict[str, dict[str, list[dict[str, object]]]] = {name: {"train": [], "eval": []} for name in NAMES}
    for name in NAMES:
        for number in range(3):
            shard = f"train/{name}-{number}.tar"
            (made / shard).write_bytes(
                write_shard(FAMILIES[name].sample(0, "train", number * 10 + n) for n in range(10))
            )
            families[name]["train"].append({"shard": shard, "samples": 10})
    (made / "index.json").write_text(json.dumps({"families": families, "image": {}}))
    return made


@pytest.fixture
def publish(step_environment: str, store: ObjectStore) -> Callable[[Path], str]:
    def published(folder: Path) -> str:
        made = manifests.publish(
            store, f"{step_environment}/prepare_data/0", folder, run_id=step_environment, step="prepare_data", index=0,
            kind="data",
        )  # fmt: skip
        return made.uri

    return published


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stream_over_the_store_is_the_folders(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    data = open_data(store, publish(folder), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar")) and not (tmp_path / "cache" / "shards").exists()
    weights = {"recall": 1.0, "fact_qa": 1.0}
    local, here, beside = (
        [batch for batch, _ in opened.mixture(weights, tokens_per_row=128, rows=2, seed=0)(None).batches(4, beside=how)]
        for opened, how in ((DataFolder(folder), False), (data, False), (data, True))
    )
    for batches in (here, beside):
        assert all(torch.equal(a.input_ids_BT, b.input_ids_BT) for a, b in zip(batches, local, strict=True))
    assert list(data.samples("recall", "train")) == list(DataFolder(folder).samples("recall", "train"))


def test_shards_are_brought_ahead_and_the_cache_stays_small(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    uri, cache = publish(folder), tmp_path / "cache"
    manifest = manifests.read(store, uri)
    shards = [file for file in manifest.files if file.name.endswith(".tar")]
    source = StoredShards(store, uri, manifest, cache, capacity=3 * max(file.size for file in shards))
    source.soon(shards[0].name)
    until((cache / shards[0].sha256).exists)
    source.soon("train/unknown.tar")
    opened = source.open(shards[0].name)
    for file in shards:
        with source.open(file.name) as stream:
            assert stream.read() == (folder / file.name).read_bytes()
        assert sum(path.stat().st_size for path in cache.iterdir()) <= 3 * max(file.size for file in shards)
    assert not (cache / shards[0].sha256).exists() and (cache / shards[-1].sha256).exists()
    with opened:  # removed from the cache, but whoever reads it goes on
        assert opened.read() == (folder / shards[0].name).read_bytes()


def test_a_damaged_or_missing_shard_is_broken_and_a_store_that_is_away_is_not(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = publish(folder)
    manifest = manifests.read(store, uri)
    source = StoredShards(store, uri, manifest, tmp_path / "cache")
    places = {file.name: f"{uri}/{file.place}" for file in manifest.files}
    store.put(places["train/recall-0.tar"], b"something else")
    store.delete(places["train/recall-1.tar"])
    for name in ("train/recall-0.tar", "train/recall-1.tar", "train/recall-9.tar"):
        source.soon(name)
        with pytest.raises(BrokenShard, match=name):
            source.open(name)
    until(lambda: not list((tmp_path / "cache").iterdir()))  # the thread that brings them ahead ends, too

    def away(key: str, path: Path) -> None:
        raise MoonflowError("object store cannot be reached")

    monkeypatch.setattr(source._store, "download", away)
    with pytest.raises(MoonflowError, match="reached") as error:
        source.open("train/recall-2.tar")
    assert not isinstance(error.value, BrokenShard)


def test_other_manifests_are_refused(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    (folder / "index.json").unlink()
    shutil.rmtree(folder / "train")
    with pytest.raises(MoonflowError, match=r"index\.json"):
        open_data(store, publish(folder), tmp_path / "cache")
