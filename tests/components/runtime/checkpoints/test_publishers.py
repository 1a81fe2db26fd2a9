"""Two processes that publish to one prefix, interleaved at every request to the store."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.runtime.checkpoints import step_checkpoints as checkpoints
from components.runtime.checkpoints.manifest import File, Manifest, add, fetch, find, read
from components.runtime.checkpoints.retention import Retention
from components.runtime.checkpoints.step_checkpoints import StoredCheckpoints
from components.runtime.store.folder_store import FolderStore
from model.boundary.errors import MoonflowError, Unavailable
from tests.published import checkpoints_of_step, publish_output, write_text_checkpoint

REQUESTS = 9  # more than one publisher sends
ANOTHER = "already holds another output"
REMOVED = "was removed while it was published"


class Paused(FolderStore):
    """A store that waits before its request number ``stop`` until it is let go on."""

    def __init__(self, base: str, stop: int) -> None:
        super().__init__(base)
        self._turn = threading.Lock()
        self._left = stop
        self.stopped, self.go_on = threading.Event(), threading.Event()

    def _in_turn(self, name: str, *arguments: Any) -> Any:
        with self._turn:  # one request at a time, so that they can be counted
            if self._left == 0:
                self.stopped.set()
                assert self.go_on.wait(30)
            self._left -= 1
            return getattr(FolderStore, name)(self, *arguments)

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self._in_turn("put_new", key, data))

    def get(self, key: str) -> bytes:
        return bytes(self._in_turn("get", key))

    def upload(self, path: Path, key: str) -> None:
        self._in_turn("upload", path, key)

    def list(self, prefix: str = "") -> list[str]:
        return list(self._in_turn("list", prefix))

    def delete(self, key: str) -> None:
        self._in_turn("delete", key)


class Process:
    """Work on a store, in a thread that stands still before request number ``stop``."""

    def __init__(self, base: str, stop: int, work: Callable[[FolderStore], Manifest]) -> None:
        self.store = Paused(base, stop)
        self.made: Manifest | None = None
        self.error = ""
        self._work = work
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        while self._thread.is_alive() and not self.store.stopped.wait(0.001):
            pass

    def finish(self) -> None:
        self.store.go_on.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.made = self._work(self.store)
        except Unavailable as error:  # not the input's fault: a lost pod may still publish next to its successor
            self.error = str(error)


def interleaved(first: Process, second: Process) -> None:
    """The first begins, the second begins, the first ends, the second ends."""
    first.start()
    second.start()
    first.finish()
    second.finish()


@pytest.mark.parametrize("stop", range(REQUESTS))
@pytest.mark.parametrize("same", [True, False], ids=["the-same", "different"])
def test_whoever_comes_first_is_published_whole(tmp_path: Path, stop: int, same: bool) -> None:
    one = write_text_checkpoint(tmp_path / "one", "weights")
    other = write_text_checkpoint(tmp_path / "other", "weights" if same else "others!")
    for number in range(REQUESTS):
        base = f"file://{tmp_path}/objects{number}"
        processes = [
            Process(base, stop, lambda store: publish_output(store, one, "r", "s")),
            Process(base, number, lambda store: publish_output(store, other, "r", "s")),
        ]
        interleaved(*processes)
        store = FolderStore(base)
        there = fetch(store, "r/s/0", tmp_path / f"back{number}")
        made = [process.made for process in processes if process.made is not None]
        assert all(manifest == there for manifest in made), "nobody is told of another manifest than the one there"
        assert len(made) == (2 if same else 1)
        assert all(ANOTHER in process.error for process in processes if process.made is None)
        assert store.list() == sorted(["r/s/0/manifest.json", *(f"r/s/0/{file.path}" for file in there.files)])


@pytest.mark.parametrize("stop", range(REQUESTS))
def test_other_ranks_files_stay_with_their_publisher(tmp_path: Path, stop: int) -> None:
    """Each process has a second rank, which adds its files before the first publishes."""

    def ranked(name: str) -> Callable[[FolderStore], Manifest]:
        own = write_text_checkpoint(tmp_path / name, name)
        beside = tmp_path / f"{name}-rank1"
        beside.mkdir()
        (beside / "optimizer.safetensors").write_text(name)
        return lambda store: publish_output(store, own, "r", "s", added=add(store, "r/s/0", beside))

    works = ranked("a"), ranked("b")
    for number in range(REQUESTS):
        base = f"file://{tmp_path}/objects{number}"
        processes = [Process(base, at, work) for at, work in zip((stop, number), works, strict=True)]
        interleaved(*processes)
        there = fetch(FolderStore(base), "r/s/0", tmp_path / f"back{number}")
        files = ("model.safetensors", "optimizer.safetensors")
        assert len({(tmp_path / f"back{number}" / name).read_text() for name in files}) == 1, "files of two publishers"
        assert [process.made for process in processes].count(there) == 1
        assert len(FolderStore(base).list()) == 1 + len(there.files)


def stored(store: FolderStore, tmp_path: Path) -> StoredCheckpoints:
    return checkpoints_of_step(store, "r", "s", tmp_path / "cache", Retention(last=2))


def everything_verifies(store: FolderStore, tmp_path: Path) -> None:
    for key in store.list():
        if key.endswith("/manifest.json"):
            fetch(store, key, tmp_path / "verified" / str(store.base.key).replace("/", "-") / key.replace("/", "-"))


@pytest.mark.parametrize("stop", range(12))
def test_a_slow_twin_whose_checkpoint_was_pruned_publishes_nothing_damaged(tmp_path: Path, stop: int) -> None:
    """One process stands still in its first save; its twin saves five checkpoints and removes the old ones."""
    base = f"file://{tmp_path}/objects"
    folders = [write_text_checkpoint(tmp_path / f"folder{index}", f"weights {index}") for index in range(5)]
    slow = Process(base, stop, lambda store: save(stored(store, tmp_path), folders[:1]))
    slow.start()
    store = FolderStore(base)
    newest = save(stored(store, tmp_path), folders)
    slow.finish()
    assert slow.made is not None or REMOVED in slow.error, slow.error
    everything_verifies(store, tmp_path)
    assert checkpoints.resumable(store, "r/s", tmp_path / "cache") == (newest, {})


def save(saved: StoredCheckpoints, folders: list[Path]) -> Manifest:
    for _, folder in enumerate(folders):
        saved.prepare(index=saved.next_index, tokens_seen=0, complete=False).publish(folder)
    return saved.newest


@pytest.mark.parametrize("stop", range(16))
def test_a_damaged_checkpoint_is_replaced_once(tmp_path: Path, stop: int) -> None:
    """Both processes find the newest checkpoint damaged, go on from the one before and replace it."""
    first, second, mine, theirs = (
        write_text_checkpoint(tmp_path / name, name) for name in ("first", "second", "mine", "theirs")
    )
    for number in range(0, 16, 3):
        base = f"file://{tmp_path}/objects{number}"
        store = FolderStore(base)
        save(stored(store, tmp_path), [first, second])
        weights = next(file for file in read(store, "r/s/1").files if file.name == "model.safetensors")
        store.put(f"r/s/1/{weights.path}", b"torn")
        cache = tmp_path / str(number)
        processes = [
            Process(base, at, lambda store, folder=folder, cache=cache: save(stored(store, cache), [folder]))
            for at, folder in ((stop, mine), (number, theirs))
        ]
        interleaved(*processes)
        told = [process.error for process in processes if process.made is None]
        assert all(ANOTHER in error or REMOVED in error for error in told), told
        everything_verifies(store, tmp_path)
        there = find(store, "r/s/1")
        assert there is not None and there in [process.made for process in processes]


def test_a_dead_publishers_files_go_when_the_next_one_has_published(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/objects")
    one = write_text_checkpoint(tmp_path / "one", "one")
    add(store, "r/s/0", write_text_checkpoint(tmp_path / "dead", "dead"))
    assert len(store.list()) == 2
    made = publish_output(store, one, "r", "s")
    assert len(store.list()) == 1 + len(made.files)
    # A loser that died before it could remove its own: whoever keeps the step's outputs in order does.
    add(store, "r/s/0", tmp_path / "dead")
    Retention(last=2).apply(store, "r/s")
    assert len(store.list()) == 1 + len(made.files)
    # Somebody's files without a manifest may be on their way.
    add(store, "r/s/1", tmp_path / "dead")
    Retention(last=2).apply(store, "r/s")
    assert len(store.list()) == 3 + len(made.files)


OLD = {
    "uri": "s3://moonflow/runs/r/s/0", "run_id": "r", "step": "s", "index": 0, "kind": "checkpoint",
    "files": [{"name": "config.json", "size": 2,
               "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}],
    "model_config": {}, "tokens_seen": 0, "training_state": [], "complete": True, "config_sha256": "", "parents": [],
    "tokenizer_sha256": "", "mlflow_run_id": "", "git_commit": "", "created_at": "2026-01-01T00:00:00+00:00",
    "extra": {},
}  # fmt: skip


def test_a_manifest_of_before_is_read_as_it_was(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/objects")
    stored_bytes = (json.dumps(OLD, sort_keys=True, indent=2) + "\n").encode()
    store.put("r/s/0/config.json", b"{}")
    store.put("r/s/0/manifest.json", stored_bytes)
    made = fetch(store, "r/s/0", tmp_path / "back")
    assert made.canonical() == stored_bytes and (tmp_path / "back" / "config.json").read_bytes() == b"{}"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_text("{}")
    assert publish_output(store, tmp_path / "again", "r", "s") == made, "the same content, wherever it lies"


def test_a_copied_run_goes_on_from_the_copy(tmp_path: Path) -> None:
    saved = stored(FolderStore(f"file://{tmp_path}/objects"), tmp_path)
    newest = save(saved, [write_text_checkpoint(tmp_path / "one", "weights")])
    (tmp_path / "objects").rename(tmp_path / "copy")
    again = stored(FolderStore(f"file://{tmp_path}/copy"), tmp_path / "other")
    restored = again.latest()
    assert again.newest == newest and restored is not None
    assert (restored / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("key", ["../out", "/etc/passwd", "manifest.json", "a//b", "a\0b"])
def test_a_manifest_cannot_send_a_reader_elsewhere(key: str) -> None:
    with pytest.raises(ValueError, match="not a plain path"):
        File(name="a", size=0, sha256="0" * 64, key=key)


def test_a_name_that_no_store_can_hold_is_told_before_anything_is_uploaded(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/objects")
    folder = write_text_checkpoint(tmp_path / "made", "weights")
    (folder / "back\\slash").write_text("")
    with pytest.raises(MoonflowError, match="is not a key"):
        publish_output(store, folder, "r", "s")
    assert store.list() == []


def test_a_manifest_of_another_folder_is_a_file_like_any_other(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/objects")
    folder = write_text_checkpoint(tmp_path / "made", "weights")
    (folder / "inner").mkdir()
    (folder / "inner" / "manifest.json").write_text("{}")
    (folder / "manifest.json").write_text("left by a fetch")
    assert "inner/manifest.json" in {file.name for file in publish_output(store, folder, "r", "s").files}
