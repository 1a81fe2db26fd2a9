"""Where one step's checkpoints live: ``<run>/<step>/<index>/`` in the object store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Damaged, File, Manifest
from components.runtime.checkpoints.retention import Retention
from components.runtime.store.object_store import ObjectStore


def indices(store: ObjectStore, prefix: str) -> list[int]:
    """Indices below ``<run>/<step>``, newest first, with or without a manifest."""
    return sorted((int(name) for name in store.folders(f"{prefix}/") if name.isdigit()), reverse=True)


def newest(store: ObjectStore, prefix: str) -> Manifest | None:
    """The readable manifest with the highest index below ``<run>/<step>``; None if the step has published nothing.

    Its files are not looked at. Raises Damaged if there are manifests but none can be read.
    """
    return _first(store, prefix, lambda _: None)[0]


@dataclass(frozen=True)
class Damage:
    """What is wrong with an output, and the stored bytes of its manifest."""

    what: str
    manifest: bytes


def resumable(store: ObjectStore, prefix: str, cache: Path) -> tuple[Manifest | None, dict[int, Damage]]:
    """The output from which an unfinished step continues, and the damaged ones that it skips, by index.

    The output is the newest whose files are all as published; afterwards ``cache`` holds them. Raises Damaged if there
    are manifests but all are damaged.
    """
    return _first(store, prefix, lambda manifest: restore(store, manifest, cache, f"{prefix}/{manifest.index}"))


def _first(
    store: ObjectStore, prefix: str, check: Callable[[Manifest], object]
) -> tuple[Manifest | None, dict[int, Damage]]:
    """The newest manifest that can be read and that ``check`` does not call Damaged; and the damaged ones above it."""
    damaged: dict[int, Damage] = {}
    for index in indices(store, prefix):
        manifest = None
        try:
            if (manifest := manifests.find(store, f"{prefix}/{index}")) is not None:
                check(manifest)
                return manifest, damaged
        except Damaged as error:
            damaged[index] = Damage(error.what, error.manifest if manifest is None else manifest.canonical())
    if damaged:
        raise Damaged(
            f"{store.uri(prefix)} has no undamaged checkpoint left ({next(iter(damaged.values())).what})",
            f"delete {store.uri(prefix)} to do it again, or use a new run id",
        )
    return None, damaged


def restore(store: ObjectStore, manifest: Manifest, cache: Path, uri: str, names: Iterable[str] | None = None) -> Path:
    """A verified local copy of a manifest's files, in a folder named by its digest: fetched once per machine.

    ``uri`` is where the manifest was read; in a copied run, its own ``uri`` names the prefix that it was copied from.
    ``names`` are the files that are needed; None: all.
    """
    folder = cache / manifest.sha256
    manifests.fetch_files(store, uri, manifest, folder, names)
    return folder


Publish = Callable[[Path, Sequence[File]], Manifest]
"""(folder, files that other ranks added) -> the manifest that was published."""


class StoredCheckpoints:
    """``model.checkpoint.publication.Checkpoints`` over the object store.

    ``begin(index=, kind=, complete=, ...)`` comes from the step's context: it fixes the manifest's other fields as of
    now and returns what publishes a folder with them. ``start`` and ``damaged`` are what ``resumable`` found when the
    step began.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        cache: Path,
        start: Manifest | None,
        damaged: Mapping[int, Damage],
        begin: Callable[..., Publish],
        retention: Retention | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._cache = cache
        self._begin = begin
        self._retention = retention or Retention()
        self._newest = start
        self._damaged = dict(damaged)
        self._published_elsewhere: int | None = None

    @property
    def newest(self) -> Manifest:
        """The manifest last saved, or resumed from. RuntimeError if there is none yet, which is a bug."""
        if (found := self._find_newest()) is None:
            raise RuntimeError(f"{self._prefix} has published nothing yet")
        return found

    @property
    def next_index(self) -> int:
        found = self._find_newest()
        return 0 if found is None else found.index + 1

    def latest(self) -> Path | None:
        """A local folder with the newest checkpoint, verified; None if there is none yet. Do not write into it."""
        found = self._find_newest()
        if found is None:
            return None
        return restore(self._store, found, self._cache, f"{self._prefix}/{found.index}")

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Outgoing:
        """Checkpoint ``index`` as of now; see ``model.checkpoint.publication``."""
        return self.begin(index=index, kind="checkpoint", tokens_seen=tokens_seen, complete=complete)

    def begin(self, *, index: int, **fields: Any) -> Outgoing:
        """Output ``index``, of any kind, as of now."""
        return Outgoing(self, index, self._begin(index=index, **fields))

    def clear(self, index: int) -> None:
        """Remove the manifest of a damaged output found at the start, now that its replacement is there.

        The replacement's publication removes the files. If another process has replaced it since, that one stays.
        """
        if (damage := self._damaged.pop(index, None)) is not None:
            manifests.withdraw(self._store, f"{self._prefix}/{index}", damage.manifest)

    def add(self, folder: Path, index: int) -> list[dict[str, Any]]:
        """Upload this rank's files of output ``index``; their manifest entries."""
        self._published_elsewhere = index
        return [file.model_dump() for file in manifests.add(self._store, f"{self._prefix}/{index}", folder)]

    def published(self, manifest: Manifest) -> None:
        """``manifest`` is durable: from now on it is the newest, and older ones may go."""
        self._newest = manifest
        self._retention.apply(self._store, self._prefix)

    def _find_newest(self) -> Manifest | None:
        if self._published_elsewhere is not None:  # another rank has written its manifest
            self._newest = manifests.read(self._store, f"{self._prefix}/{self._published_elsewhere}")
            self._published_elsewhere = None
        return self._newest


class Outgoing:
    """``model.checkpoint.publication.Publication``: one output of a step on its way to the store."""

    def __init__(self, checkpoints: StoredCheckpoints, index: int, publish: Publish) -> None:
        self._checkpoints, self._index, self._publish = checkpoints, index, publish

    def clear(self) -> None:
        self._checkpoints.clear(self._index)

    def add(self, folder: Path) -> list[dict[str, Any]]:
        return self._checkpoints.add(folder, self._index)

    def publish(self, folder: Path, added: Sequence[list[dict[str, Any]]] = ()) -> Manifest:
        self.clear()
        manifest = self._publish(folder, [File(**entry) for entries in added for entry in entries])
        self._checkpoints.published(manifest)
        return manifest


def described(folder: Path) -> dict[str, Any]:
    """The manifest fields that follow from a checkpoint folder: model config, tokenizer digest, training state."""
    fields: dict[str, Any] = {}
    if (config := folder / "config.json").is_file():
        fields["model_config"] = json.loads(config.read_text())
    if (tokenizer := folder / "tokenizer.json").is_file():
        fields["tokenizer_sha256"] = manifests.file_sha256(tokenizer)
    state = ["optimizer"] if any(folder.glob("optimizer-*.safetensors")) else []
    if (saved := folder / "training_state.json").is_file():
        state += sorted(json.loads(saved.read_text()))
    fields["training_state"] = state
    return fields
