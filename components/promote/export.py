"""From a training checkpoint to what is served: the model's files only, signed, under the checkpoint's own digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.promote import signing
from components.promote.signing import SIGNATURE, STATEMENT
from components.runtime import manifest as manifests
from components.runtime.manifest import METRICS, Manifest
from components.runtime.store import ObjectStore
from model.errors import MoonflowError
from model.hf import FILES, quantise_checkpoint
from model.tokenizer import Tokenizer
from model.train.checkpoint import serves


def export(store: ObjectStore, checkpoint: Manifest, work: Path, key: Path, expert_precision: str = "full") -> Manifest:
    """Publish the servable part of a checkpoint with its signature, as ``<run>/export/<checkpoint's digest>``.

    Who reads a release without our code finds its files under their plain names in the one folder ``files-...`` there
    (``components.runtime.manifest``); what serves fetches them.

    The same checkpoint has one export of each precision (INT4's has ``-int4`` behind the digest): a second call, also
    one at the same time, returns the first one's manifest.

    Args:
        work: an empty folder for the files; as large as the weights.
        key: the private key, a PEM file.
        expert_precision: the routed experts as they are ("full") or INT4 ("int4").

    Raises:
        MoonflowError: the checkpoint lacks a file, the key cannot be used, or an earlier export is another key's.
    """
    prefix = f"{checkpoint.run_id}/export/{checkpoint.sha256}{'-int4' if expert_precision == 'int4' else ''}"
    folder = work / checkpoint.run_id  # the signature names the folder as the model
    # All fields follow from the checkpoint, so that whoever exports it signs the same statement.
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
        "extra": {"exported_from": checkpoint.uri},
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
    """Sign, unless somebody has: signatures differ from time to time, and files of an export must not."""
    signing.sign(folder, key)
    if not store.put_new(where, (folder / SIGNATURE).read_bytes()):
        (folder / SIGNATURE).write_bytes(store.get(where))
