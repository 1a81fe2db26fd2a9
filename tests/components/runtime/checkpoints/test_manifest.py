from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.runtime.checkpoints import step_checkpoints as checkpoints
from components.runtime.checkpoints.manifest import Manifest, find, publish, read
from components.runtime.checkpoints.manifest import fetch as fetch_manifest
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.s3 import S3Store
from model.boundary.errors import MoonflowError
from tests.published import checkpoints_of_step

pytestmark = pytest.mark.services


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "train").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 128}')
    (folder / "train" / "a-00000.tar").write_bytes(bytes(range(256)) * 100)
    return folder


@pytest.fixture
def prefix() -> str:
    return f"manifests/{uuid.uuid4().hex[:8]}/0"


def fields(**other: Any) -> dict[str, Any]:
    return {"run_id": "r", "step": "s", "index": 0, "kind": "checkpoint", **other}


def place(store: ObjectStore, prefix: str, name: str) -> str:
    """The key of a published file."""
    (file,) = (file for file in read(store, prefix).files if file.name == name)
    return f"{prefix}/{file.path}"


def test_the_content_s_digest_is_of_the_files_alone(store: ObjectStore, folder: Path, prefix: str) -> None:
    (folder / "metrics.jsonl").write_text("of one run")
    made = publish(store, f"{prefix}/a", folder, **fields())
    (folder / "metrics.jsonl").write_text("of another")
    again = publish(store, f"{prefix}/b", folder, **fields(run_id="other"))
    assert again.content_sha256 == made.content_sha256 and again.sha256 != made.sha256
    (folder / "config.json").write_text('{"hidden_size": 129}')
    assert publish(store, f"{prefix}/c", folder, **fields()).content_sha256 != made.content_sha256


def test_published_files_come_back(store: ObjectStore, folder: Path, prefix: str, tmp_path: Path) -> None:
    made = publish(store, prefix, folder, **fields(tokens_seen=7, model_config={"hidden_size": 128}, extra={"x": 0.1}))
    stored = store.get(f"{prefix}/manifest.json")
    assert hashlib.sha256(stored).hexdigest() == made.sha256
    assert json.loads(stored)["model_config"] == {"hidden_size": 128}
    assert made.uri == store.uri(prefix)
    got = fetch_manifest(store, made.uri + "/manifest.json", tmp_path / "back")
    assert got == made and got.sha256 == made.sha256
    for name in ("config.json", "train/a-00000.tar"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    fetch_manifest(store, made.uri, tmp_path / "one", ["config.json"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["config.json"]
    with pytest.raises(MoonflowError, match="holds no file 'absent'"):
        fetch_manifest(store, made.uri, tmp_path / "one", ["absent"])


def test_files_at_hand_are_not_fetched_again_unless_they_changed(
    store: ObjectStore, folder: Path, prefix: str, tmp_path: Path
) -> None:
    made = publish(store, prefix, folder, **fields())
    back = tmp_path / "back"
    fetch_manifest(store, made.uri, back)
    inode = (back / "config.json").stat().st_ino
    (back / "train" / "a-00000.tar").write_bytes(b"changed")
    fetch_manifest(store, made.uri, back)
    assert (back / "config.json").stat().st_ino == inode
    assert (back / "train" / "a-00000.tar").read_bytes() == (folder / "train" / "a-00000.tar").read_bytes()


def test_prefix_without_manifest_does_not_exist(store: ObjectStore, folder: Path, prefix: str, tmp_path: Path) -> None:
    store.upload(folder / "config.json", f"{prefix}/config.json")
    assert find(store, prefix) is None
    with pytest.raises(MoonflowError, match="has no manifest.json: its step never finished"):
        fetch_manifest(store, store.uri(prefix), tmp_path / "back")


def test_failed_upload_leaves_no_manifest(
    store: ObjectStore, folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = S3Store.upload

    def broken(self: S3Store, path: Path, key: str) -> None:
        if key.endswith(".tar"):
            raise MoonflowError("the store's disk is full")
        upload(self, path, key)

    monkeypatch.setattr(S3Store, "upload", broken)
    with pytest.raises(MoonflowError, match="disk is full"):
        publish(store, prefix, folder, **fields())
    assert not store.exists(f"{prefix}/manifest.json")
    monkeypatch.undo()
    assert publish(store, prefix, folder, **fields()) == find(store, prefix)


def test_same_output_again_is_accepted_another_refused(store: ObjectStore, folder: Path, prefix: str) -> None:
    first = publish(store, prefix, folder, **fields(created_at="2026-01-01T00:00:00+00:00"))
    assert publish(store, prefix, folder, **fields()) == first
    (folder / "config.json").write_text("{}")
    with pytest.raises(MoonflowError, match="already holds another output"):
        publish(store, prefix, folder, **fields())
    assert store.get(place(store, prefix, "config.json")) == b'{"hidden_size": 128}', "a refused publish wrote"
    assert sorted(store.list(f"{prefix}/")) == sorted(
        [f"{prefix}/manifest.json", *(f"{prefix}/{file.path}" for file in first.files)]
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"short", "is truncated: expected 25600 bytes, got 5: delete s3://.* or choose the previous checkpoint"),
        (bytes(25600), "is damaged: 25600 bytes .expected 25600. and another SHA-256: delete"),
        (None, "is missing although the manifest names it: delete"),
    ],
    ids=["truncated", "changed", "gone"],
)
def test_damaged_file_is_named(
    store: ObjectStore, folder: Path, prefix: str, tmp_path: Path, data: bytes | None, says: str
) -> None:
    made = publish(store, prefix, folder, **fields())
    key = place(store, prefix, "train/a-00000.tar")
    store.delete(key)
    if data is not None:
        store.put(key, data)
    with pytest.raises(MoonflowError, match=f"{store.uri(key)} {says}"):
        fetch_manifest(store, made.uri, tmp_path / "back")
    assert not (tmp_path / "back" / "train" / "a-00000.tar").exists()


def test_damaged_manifest_is_told(store: ObjectStore, prefix: str) -> None:
    store.put(f"{prefix}/manifest.json", b'{"uri": "s3://x", "run_')
    with pytest.raises(MoonflowError, match="manifest.json is damaged .*choose the previous checkpoint"):
        read(store, store.uri(prefix))


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "manifest.json", "a//b"])
def test_names_cannot_leave_the_folder(name: str) -> None:
    entry = {"name": name, "size": 0, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="not a plain path"):
        Manifest(uri="s3://b/p", files=[entry], **fields())  # type: ignore[arg-type]


def numbered(folder: Path, index: int) -> Path:
    """A checkpoint folder that tells its index."""
    folder.mkdir()
    (folder / "model.safetensors").write_text(f"weights {index}")
    return folder


def test_checkpoints_resume_from_the_newest_and_prune(store: ObjectStore, tmp_path: Path) -> None:
    run = f"manifests/{uuid.uuid4().hex[:8]}"
    saved = checkpoints_of_step(store, run, "train", tmp_path / "cache")
    assert saved.latest() is None and saved.next_index == 0
    with pytest.raises(RuntimeError, match="published nothing"):
        _ = saved.newest
    for index in range(12):  # two digits: 10 must count as newer than 9
        saved.prepare(index=index, tokens_seen=index * 100, complete=False).publish(
            numbered(tmp_path / str(index), index)
        )
    assert [re.sub("files-[0-9a-f]+/", "", key).removeprefix(f"{run}/train/") for key in store.list(f"{run}/")] == [
        "10/model.safetensors", "10/manifest.json", "11/model.safetensors", "11/manifest.json"
    ]  # fmt: skip
    store.put(f"{run}/train/12/model.safetensors", b"half a checkpoint")
    again = checkpoints_of_step(store, run, "train", tmp_path / "other")
    restored = again.latest()
    assert restored is not None and (restored / "model.safetensors").read_text() == "weights 11"
    assert again.newest.tokens_seen == 1100 and again.next_index == 12


def test_complete_checkpoints_are_never_pruned(store: ObjectStore, tmp_path: Path) -> None:
    run = f"manifests/{uuid.uuid4().hex[:8]}"
    saved = checkpoints_of_step(store, run, "train", tmp_path / "cache")
    for index in range(5):
        saved.prepare(index=index, tokens_seen=0, complete=index == 0).publish(numbered(tmp_path / str(index), index))
    manifests = [key for key in store.list(f"{run}/train/") if key.endswith("manifest.json")]
    assert manifests == [f"{run}/train/{index}/manifest.json" for index in (0, 3, 4)]


def truncate_weights(store: ObjectStore, prefix: str) -> str:
    store.put(place(store, prefix, "model.safetensors"), b"weig")
    return r"files-[0-9a-f]+/model.safetensors is truncated: expected 9 bytes, got 4"


def lose_weights(store: ObjectStore, prefix: str) -> str:
    store.delete(place(store, prefix, "model.safetensors"))
    return r"files-[0-9a-f]+/model.safetensors is missing although the manifest names it"


def change_weights(store: ObjectStore, prefix: str) -> str:
    store.put(place(store, prefix, "model.safetensors"), b"weights X")
    return r"files-[0-9a-f]+/model.safetensors is damaged: 9 bytes"


def truncate_manifest(store: ObjectStore, prefix: str) -> str:
    store.put(f"{prefix}/manifest.json", store.get(f"{prefix}/manifest.json")[:50])
    return r"manifest.json is damaged"


DAMAGES = [truncate_weights, lose_weights, change_weights, truncate_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    store: ObjectStore, tmp_path: Path, damage: Callable[[ObjectStore, str], str]
) -> None:
    run = f"manifests/{uuid.uuid4().hex[:8]}"
    prefix = f"{run}/train"
    saved = checkpoints_of_step(store, run, "train", tmp_path / "cache")
    for index in range(3):
        saved.prepare(index=index, tokens_seen=index, complete=False).publish(numbered(tmp_path / str(index), index))
    says = damage(store, f"{prefix}/2")

    start, damaged = checkpoints.resumable(store, prefix, tmp_path / "elsewhere")
    assert start is not None and start.index == 1
    assert list(damaged) == [2] and re.search(f"{store.uri(prefix)}/2/{says}", damaged[2].what)
    assert store.exists(f"{prefix}/2/manifest.json"), "nothing is removed before its replacement is there"

    again = checkpoints_of_step(store, run, "train", tmp_path / "elsewhere")
    restored = again.latest()
    assert restored is not None and (restored / "model.safetensors").read_text() == "weights 1"
    assert again.next_index == 2
    again.prepare(index=2, tokens_seen=2, complete=False).publish(numbered(tmp_path / "again", 22))
    replaced = fetch_manifest(store, store.uri(f"{prefix}/2"), tmp_path / "replaced")
    assert replaced == again.newest and (tmp_path / "replaced" / "model.safetensors").read_text() == "weights 22"
    assert checkpoints.resumable(store, prefix, tmp_path / "elsewhere") == (replaced, {})


def test_an_older_damaged_manifest_does_not_stop_the_training(store: ObjectStore, tmp_path: Path) -> None:
    run = f"manifests/{uuid.uuid4().hex[:8]}"
    saved = checkpoints_of_step(store, run, "train", tmp_path / "cache")
    for index in range(4):
        saved.prepare(index=index, tokens_seen=0, complete=False).publish(numbered(tmp_path / str(index), index))
        if index == 1:
            truncate_manifest(store, f"{run}/train/1")
    assert saved.newest.index == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_undamaged_checkpoint_left_is_one_line(
    store: ObjectStore, tmp_path: Path, damage: Callable[[ObjectStore, str], str]
) -> None:
    run = f"manifests/{uuid.uuid4().hex[:8]}"
    saved = checkpoints_of_step(store, run, "train", tmp_path / "cache")
    for index in range(2):
        saved.prepare(index=index, tokens_seen=0, complete=False).publish(numbered(tmp_path / str(index), index))
        says = damage(store, f"{run}/train/{index}")
    prefix = store.uri(f"{run}/train")
    with pytest.raises(MoonflowError) as raised:
        checkpoints.resumable(store, f"{run}/train", tmp_path / "elsewhere")
    pattern = rf"{prefix} has no undamaged checkpoint left \({prefix}/1/{says}.*\): delete {prefix} to do it again"
    assert re.match(pattern, str(raised.value)) and "\n" not in str(raised.value)


def test_folder_describes_itself(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer-00000-of-00001.safetensors").write_bytes(b"")
    (folder / "training_state.json").write_text('{"rng": [], "loop": {}}')
    assert checkpoints.described(folder) == {
        "model_config": {"hidden_size": 128},
        "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(),
        "training_state": ["optimizer", "loop", "rng"],
    }
