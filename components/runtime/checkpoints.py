"""Where one step's checkpoints live: ``<run>/<step>/<index>/`` in the object store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from components.runtime import manifest as manifests
from components.runtime.manifest import MANIFEST, Damaged, Manifest
from components.runtime.store import ObjectStore

KEEP = 2  # newest checkpoints of an unfinished step: one to resume from, one if that is found damaged


def indices(store: ObjectStore, prefix: str) -> list[int]:
    """Indices below ``<run>/<step>``, newest first, with or without a manifest."""
    return sorted((int(name) for name in store.folders(f"{prefix}/") if name.isdigit()), reverse=True)


def newest(store: ObjectStore, prefix: str) -> Manifest | None:
    """The readable manifest with the highest index below ``<run>/<step>``; None if the step has published nothing.

    Its files are not looked at. Damaged if there are manifests, but none that can be read.
    """
    return _first(store, prefix, lambda _: None)[0]


def resumable(store: ObjectStore, prefix: str, cache: Path) -> tuple[Manifest | None, dict[int, str]]:
    """What an unfinished step goes on from, and what it has to pass over: index -> what is wrong there.

    The manifest is the newest whose files are all as published; they are fetched to ``cache`` on the way. Damaged if
    there are manifests, but none undamaged.
    """
    return _first(store, prefix, lambda manifest: restore(store, manifest, cache))


def _first(
    store: ObjectStore, prefix: str, check: Callable[[Manifest], object]
) -> tuple[Manifest | None, dict[int, str]]:
    """The newest manifest that can be read and that ``check`` does not call Damaged; and the damaged ones above it."""
    damaged: dict[int, str] = {}
    for index in indices(store, prefix):
        try:
            if (manifest := manifests.find(store, f"{prefix}/{index}")) is not None:
                check(manifest)
                return manifest, damaged
        except Damaged as error:
            damaged[index] = error.what
    if damaged:
        raise Damaged(
            f"{store.uri(prefix)} has no undamaged checkpoint left ({next(iter(damaged.values()))})",
            f"delete {store.uri(prefix)} to do it anew, or use a new run id",
        )
    return None, damaged


def restore(store: ObjectStore, manifest: Manifest, cache: Path) -> Path:
    """A verified local copy of a manifest's files, in a folder named by its digest: fetched once per machine."""
    folder = cache / manifest.sha256
    manifests.fetch(store, manifest.uri, folder)
    return folder


class StoredCheckpoints:
    """``model.train.protocol.Checkpoints`` over the object store.

    ``publish(folder, index=, kind=, complete=, ...)`` comes from the step's context, which knows the manifest's
    other fields; ``start`` and ``damaged`` are what ``resumable`` found when the step began.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        cache: Path,
        start: Manifest | None,
        damaged: Iterable[int],
        publish: Callable[..., Manifest],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._cache = cache
        self._publish = publish
        self._newest = start
        self._damaged = set(damaged)

    @property
    def newest(self) -> Manifest:
        """The manifest last saved, or resumed from; a step that asks before there is one has a bug (RuntimeError)."""
        if self._newest is None:
            raise RuntimeError(f"{self._prefix} has published nothing yet")
        return self._newest

    @property
    def next_index(self) -> int:
        return 0 if self._newest is None else self._newest.index + 1

    def publish(self, folder: Path, *, index: int, **fields: Any) -> Manifest:
        """Publish ``folder`` as output ``index``; older unfinished ones are pruned once it is durable.

        A damaged output of that index gives way only now that its replacement is there.
        """
        if index in self._damaged:
            self._delete(self._store.list(f"{self._prefix}/{index}/"))
            self._damaged.remove(index)
        self._newest = self._publish(folder, index=index, **fields)
        self._prune()
        return self._newest

    def latest(self) -> Path | None:
        """A local folder with the newest checkpoint, verified; None if there is none yet. Do not write into it."""
        return None if self._newest is None else restore(self._store, self._newest, self._cache)

    def save(self, folder: Path, *, index: int, tokens_seen: int, complete: bool) -> None:
        """Publish ``folder`` as checkpoint ``index``; durable when it returns."""
        self.publish(folder, index=index, kind="checkpoint", tokens_seen=tokens_seen, complete=complete)

    def _prune(self) -> None:
        # By keys, not by folders: a store may show emptied folders for a while.
        files: dict[int, list[str]] = {}
        for key in self._store.list(f"{self._prefix}/"):
            folder = key.removeprefix(f"{self._prefix}/").split("/")[0]
            if folder.isdigit():
                files.setdefault(int(folder), []).append(key)
        for index in sorted(files, reverse=True)[KEEP:]:
            try:
                manifest = manifests.find(self._store, f"{self._prefix}/{index}")
            except Damaged:
                continue  # it cannot say whether it was complete
            if manifest is None or not manifest.complete:
                self._delete(files[index])

    def _delete(self, keys: list[str]) -> None:
        # The manifest goes first: from then on the prefix does not exist, whatever becomes of its files.
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
            self._store.delete(key)


def described(folder: Path) -> dict[str, Any]:
    """The manifest fields that a checkpoint folder tells by itself: model config, tokenizer digest, training state."""
    fields: dict[str, Any] = {}
    if (config := folder / "config.json").is_file():
        fields["model_config"] = json.loads(config.read_text())
    if (tokenizer := folder / "tokenizer.json").is_file():
        fields["tokenizer_sha256"] = manifests.file_sha256(tokenizer)
    state = ["optimizer"] if (folder / "optimizer.safetensors").is_file() else []
    if (saved := folder / "training_state.json").is_file():
        state += sorted(json.loads(saved.read_text()))
    fields["training_state"] = state
    return fields
