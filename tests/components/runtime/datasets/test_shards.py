"""Shards from the object store: on demand, verified, in a bounded cache; and a stream that reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.runtime.checkpoints import manifest as manifests
from components.runtime.datasets.shards import StoredShards, open_data
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.data.samples.shard_source import BrokenShard
from tests.published import publish_output
from tests.tiny_folders import write_training_folder
from tests.waiting import happens

pytestmark = pytest.mark.services


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two families in three shards of ten samples."""
    return write_training_folder(tmp_path / "made", ("recall", "fact_qa"), 10, shards=3)


@pytest.fixture
def publish(step_environment: str, store: ObjectStore) -> Callable[[Path], str]:
    def published(folder: Path) -> str:
        return publish_output(store, folder, step_environment, "prepare_data", kind="data").uri

    return published


def test_a_stream_over_the_store_is_the_folders(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    data = open_data(store, publish(folder), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar")) and not (tmp_path / "cache" / "shards").exists()
    weights = {"recall": 1.0, "fact_qa": 1.0}
    local, here, prefetched = (
        [
            batch
            for batch, _ in opened.mixture(weights, tokens_per_row=128, rows=2, seed=0)(None).batches(4, prefetch=how)
        ]
        for opened, how in ((DataFolder(folder), False), (data, False), (data, True))
    )
    for batches in (here, prefetched):
        assert all(torch.equal(a.input_ids_BT, b.input_ids_BT) for a, b in zip(batches, local, strict=True))
    assert list(data.samples("recall", "train")) == list(DataFolder(folder).samples("recall", "train"))


def test_shards_are_brought_ahead_and_the_cache_stays_small(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    uri, cache = publish(folder), tmp_path / "cache"
    manifest = manifests.read(store, uri)
    shards = [file for file in manifest.files if file.name.endswith(".tar")]
    source = StoredShards(store, uri, manifest, cache, capacity=3 * max(file.size for file in shards))
    source.prefetch(shards[0].name)
    assert happens((cache / shards[0].sha256).exists)
    source.prefetch("train/unknown.tar")
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
    places = {file.name: f"{uri}/{file.path}" for file in manifest.files}
    store.put(places["train/recall-00000.tar"], b"something else")
    store.delete(places["train/recall-00001.tar"])
    for name in ("train/recall-00000.tar", "train/recall-00001.tar", "train/recall-00009.tar"):
        source.prefetch(name)
        with pytest.raises(BrokenShard, match=name):
            source.open(name)
    assert happens(lambda: not list((tmp_path / "cache").iterdir()))  # the thread that brings them ahead ends, too

    def away(key: str, path: Path) -> None:
        raise MoonflowError("object store cannot be reached")

    monkeypatch.setattr(store, "download", away)
    with pytest.raises(MoonflowError, match="reached") as error:
        source.open("train/recall-00002.tar")
    assert not isinstance(error.value, BrokenShard)


def test_other_manifests_are_refused(
    store: ObjectStore, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    (folder / "index.json").unlink()
    shutil.rmtree(folder / "train")
    with pytest.raises(MoonflowError, match=r"index\.json"):
        open_data(store, publish(folder), tmp_path / "cache")
