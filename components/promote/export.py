"""The export of a training checkpoint: the model's files only, signed, under the checkpoint's digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.release import signing
from components.release.signing import SIGNATURE, STATEMENT
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import METRICS, ORIGIN, Manifest
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from model.checkpoint.export import quantise_checkpoint
from model.checkpoint.file_names import FILES
from model.checkpoint.folder import serves
from model.codec.tokenizer import Tokenizer

EXPORTED_FROM = "exported_from"
"""In an export's extra: the address of the checkpoint that it was made from."""


def export(store: ObjectStore, checkpoint: Manifest, work: Path, key: Path, expert_precision: str = "full") -> Manifest:
    """Publish the servable part of a checkpoint with its signature, as ``<run>/export/<checkpoint's digest>``.

    The licence of an imported checkpoint is among the files of all that was trained from it, and so of this; where it
    came from is repeated in the manifest, which is signed.

    Readers without our code find the files under their plain names in the one folder ``files-...`` there
    (``components.runtime.checkpoints.manifest``); servers fetch them from it.

    A checkpoint has one export for each precision (the INT4 one has ``-int4`` after the digest): a second call, even a
    concurrent one, returns the first one's manifest.

    Args:
        work: an empty folder for the files; as large as the weights.
        key: the private key, a PEM file.
        expert_precision: the routed experts as they are ("full") or INT4 ("int4").

    Raises:
        MoonflowError: the checkpoint lacks a file, the key cannot be used, or an earlier export was signed with another
            key.
    """
    prefix = f"{checkpoint.run_id}/export/{checkpoint.sha256}{'-int4' if expert_precision == 'int4' else ''}"
    folder = work / checkpoint.run_id  # the signature names the folder as the model
    # All fields follow from the checkpoint, so that every export of it has the same statement.
    fields: dict[str, Any] = {
        "run_id": checkpoint.run_id,
        "step": checkpoint.step,
        "index": checkpoint.index,
        "kind": "checkpoint",
        "tokens_seen": checkpoint.tokens_seen,
        "parents": (checkpoint.sha256,),
        "tokenizer_sha256": checkpoint.tokenizer_sha256,
        "mlflow_run_id": checkpoint.mlflow_run_id,
        "git_commit": checkpoint.git_commit,
        "created_at": checkpoint.created_at,
        "extra": {EXPORTED_FROM: checkpoint.uri}
        | ({ORIGIN: checkpoint.extra[ORIGIN]} if ORIGIN in checkpoint.extra else {}),
    }
    earlier = released = manifests.find(store, prefix)
    if released is None:
        _collect(store, checkpoint, folder)
        if expert_precision == "int4":
            quantise_checkpoint(folder)
        fields["model"] = json.loads((folder / "config.json").read_text())
        released = Manifest(uri=store.uri(prefix), files=(), **fields)
        (folder / STATEMENT).write_bytes(signing.statement(released))
        _sign(store, f"{prefix}/{SIGNATURE}", folder, key)
    else:
        manifests.fetch_files(store, prefix, released, folder)
    public, name = signing.public_half(key, work / "public.pem"), store.uri(prefix)
    try:
        signing.check_release(folder, released, public, name)
    except MoonflowError as error:
        raise MoonflowError(f"{error}; if the signing key was changed, delete {name} first") from None
    if earlier is not None:
        return earlier
    return manifests.publish(store, prefix, folder, **fields)


def _collect(store: ObjectStore, checkpoint: Manifest, folder: Path) -> None:
    names = [file.name for file in checkpoint.files if serves(file.name) and file.name != METRICS]
    missing = [name for name in FILES if name not in names]
    if missing or not any(name.endswith(".safetensors") for name in names):
        raise MoonflowError(f"{checkpoint.uri} cannot be served: it lacks {', '.join(missing) or 'its weights'}")
    manifests.fetch_files(store, checkpoint.uri, checkpoint, folder, names)
    Tokenizer.load(folder)  # a readable tokenizer with every special token that the chat template needs


def _sign(store: ObjectStore, where: str, folder: Path, key: Path) -> None:
    """Sign, unless another process has: signatures differ each time, and the files of an export must not."""
    signing.sign(folder, key)
    if not store.put_new(where, (folder / SIGNATURE).read_bytes()):
        (folder / SIGNATURE).write_bytes(store.get(where))
