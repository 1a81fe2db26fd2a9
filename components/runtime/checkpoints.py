"""Where one step's checkpoints live: ``<run>/<step>/<index>/`` in the object store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.runtime import manifest as manifests
from components.runtime.manifest import MANIFEST, Manifest
from components.runtime.store import ObjectStore

KEEP = 2  # newest checkpoints of an unfinished step: one to resume from, one if that is found damaged


def indices(store: ObjectStore, prefix: str) -> list[int]:
    """Indices below ``<run>/<step>``, newest first, with or without a manifest."""
    return sorted((int(name) for name in store.folders(f"{prefix}/") if name.isdigit()), reverse=True)


def newest(store: ObjectStore, prefix: str) -> Manifest | None:
    """The manifest with the highest index below ``<run>/<step>``; None if the step has published nothing."""
    for index in indices(store, prefix):
        if (manifest := manifests.find(store, f"{prefix}/{index}")) is not None:
            return manifest
    return None


def restore(store: ObjectStore, manifest: Manifest, cache: Path) -> Path:
    """A verified local copy of a manifest's files, in a folder named by its digest: fetched once per machine."""
    folder = cache / manifest.sha256
    manifests.fetch(store, manifest.uri, folder)
    return folder


class StoredCheckpoints:
    """``model.train.protocol.Checkpoints`` over the object store.

    ``publish(folder, index=, kind=, complete=, ...)`` comes from the step's context, which knows the manifest's
    other fields; ``start`` is the newest manifest when the step began.
    """

    def __init__(
        self, store: ObjectStore, prefix: str, cache: Path, start: Manifest | None, publish: Callable[..., Manifest]
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._cache = cache
        self._publish = publish
        self._newest = start

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
        """Publish ``folder`` as output ``index``; older unfinished ones are pruned once it is durable."""
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
            manifest = manifests.find(self._store, f"{self._prefix}/{index}")
            if manifest is not None and manifest.complete:
                continue
            # The manifest goes first: from then on the prefix does not exist, whatever becomes of its files.
            for key in sorted(files[index], key=lambda key: not key.endswith(f"/{MANIFEST}")):
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
