"""Outputs of steps in a store, at the places that runs give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.runtime.checkpoints.manifest import File, Manifest, publish
from components.runtime.checkpoints.retention import Retention
from components.runtime.checkpoints.step_checkpoints import Publish, StoredCheckpoints, resumable
from components.runtime.store.object_store import ObjectStore


def manifest_of(
    step: str, index: int = 0, run_id: str = "r", *, kind: str = "checkpoint", files: Iterable[File] = (), **fields: Any
) -> Manifest:
    """What would stand in a store for an output of a run's step."""
    told = {"run_id": run_id, "step": step, "index": index, "kind": kind, "files": tuple(files), **fields}
    return Manifest(uri=f"s3://b/{run_id}/{step}/{index}", **told)


def publish_output(
    store: ObjectStore, folder: Path, run_id: str, step: str, index: int = 0, *,
    kind: str = "checkpoint", added: Iterable[File] = (), **fields: Any,
) -> Manifest:  # fmt: skip
    """Publish ``folder`` as an output of a run's step; ``fields`` are further ones of its manifest."""
    told = {"run_id": run_id, "step": step, "index": index, "kind": kind, **fields}
    return publish(store, f"{run_id}/{step}/{index}", folder, added, **told)


def checkpoints_of_step(
    store: ObjectStore, run_id: str, step: str, cache: Path, retention: Retention | None = None
) -> StoredCheckpoints:
    """The checkpoints of a run's step, as the step opens them when it begins."""

    def begin(*, index: int, **fields: Any) -> Publish:
        return lambda folder, added: publish_output(store, folder, run_id, step, index, added=added, **fields)

    prefix = f"{run_id}/{step}"
    return StoredCheckpoints(store, prefix, cache, *resumable(store, prefix, cache), begin, retention)


def write_text_checkpoint(folder: Path, weights: str) -> Path:
    """A folder with an empty config and with text in the place of weights; nothing loads it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder
