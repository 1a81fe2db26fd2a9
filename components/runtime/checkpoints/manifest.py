"""The manifest: what makes a prefix in the object store exist (source: ours).

A step's output is a folder of files at ``s3://.../<run>/<step>/<index>/``. ``manifest.json`` is written last, by a
conditional put, and names every file with its size and digest: a prefix without one does not exist, and a reader
never sees half a checkpoint.

Whoever publishes there writes its files below a folder that nobody else writes to, ``files-<random>/``, and the
manifest says where each file lies. So two publishers of one prefix, or one that died and its successor, cannot spoil
each other's files; the first manifest counts. ``fetch`` gives every file its plain name.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from components.runtime.store.address import checked, path_fault
from components.runtime.store.object_store import NotInStore, ObjectStore, disk_errors
from model.boundary.errors import MoonflowError, Unavailable
from model.boundary.whole_file import sweep

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"  # the step's metric history, a file of every manifest that a step publishes
ORIGIN = "origin"
"""Where ``extra`` says which imported checkpoint this was made from: all that was made from that one repeats it."""
_ATTEMPT = "files-"  # and a random number: the folder of one publisher's files
_TRIES = 3  # attempts to write a manifest while other processes withdraw theirs
_THREADS = 8  # parallel uploads and downloads: one stream does not fill a store's bandwidth

Kind = Literal["data", "checkpoint", "evals", "promotion"]


class Damaged(MoonflowError):
    """A manifest or one of its files is not what was published.

    Attributes:
        what: the message without its advice.
        manifest: the stored bytes of a manifest that cannot be read; empty where it can.
    """

    def __init__(self, what: str, remedy: str, manifest: bytes = b"") -> None:
        super().__init__(f"{what}: {remedy}")
        self.what, self.manifest = what, manifest


class File(BaseModel):
    """One file of a manifest: name in the output's folder, size in bytes, hex SHA-256.

    ``key`` is the path below the prefix under which it is stored. It is empty in older manifests: there it is ``name``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    key: str = ""

    @field_validator("name", "key")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path == MANIFEST or (path and path_fault(path)):
            raise ValueError(f"{path!r} is not a plain path below the prefix")
        return path

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An empty key is left out, so that digests of older manifests stay what they were."""
        values: dict[str, Any] = plain(self)
        if not self.key:
            values.pop("key", None)
        return values

    @property
    def path(self) -> str:
        """Where it is stored, below the prefix: each publisher has a folder, so not always at ``name``."""
        return self.key or self.name

    @property
    def content(self) -> tuple[str, int, str]:
        """Name, size and digest: what the file is, wherever it is stored."""
        return self.name, self.size, self.sha256


class Manifest(BaseModel):
    """What a step wrote, from what, and how to check it.

    ``model`` is ``model_config`` in JSON (pydantic keeps that name for itself): the released config.json keys.
    ``parents`` are the digests of the input manifests in the order of the inputs' names. ``training_state`` names
    what a resumed run needs (``optimizer``, ``rng``, data position, loop) and is empty for a plain output.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    uri: str
    run_id: str
    step: str
    index: int = Field(ge=0)
    kind: Kind
    files: tuple[File, ...]
    model: dict[str, Any] = Field(default_factory=dict, alias="model_config")
    tokens_seen: int = 0
    training_state: tuple[str, ...] = ()
    complete: bool = True
    config_sha256: str = ""
    parents: tuple[str, ...] = ()
    tokenizer_sha256: str = ""
    mlflow_run_id: str = ""
    git_commit: str = ""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    extra: dict[str, Any] = Field(default_factory=dict)

    def canonical(self) -> bytes:
        """The stored bytes: sorted keys, two-space indent, so that ``sha256sum manifest.json`` is ``sha256``."""
        values = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(values, sort_keys=True, indent=2) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Hex digest of the canonical bytes: the identity that children and promotions record."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def content_sha256(self) -> str:
        """Hex digest of the files alone, the metric history left out: the same for the same output of another run."""
        files = [(file.name, file.sha256) for file in self.files if file.name != METRICS]
        return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()


def publish(store: ObjectStore, prefix: str, folder: Path, added: Iterable[File] = (), **fields: Any) -> Manifest:
    """Upload every file of ``folder`` to ``prefix`` and, last, its manifest; durable when it returns.

    ``added`` are files that other processes have uploaded there already (``add``). ``fields`` are those of Manifest
    except ``uri`` and ``files``. Publishing the same files again returns the manifest that is there. Other files under
    a taken prefix raise Unavailable: another process works on this run, or did. In both cases, and after a failed
    upload, nothing that this call uploaded stays there.
    """
    added = tuple(added)
    uri, taken = store.uri(prefix).rstrip("/"), find(store, prefix)
    sent = add(store, prefix, folder) if taken is None else tuple(describe(path, folder) for path in _files(folder))
    manifest = Manifest(uri=uri, files=tuple(sorted((*sent, *added), key=lambda file: file.name)), **fields)
    for _ in range(_TRIES if taken is None else 0):
        # Only after every file: a prefix without a manifest does not exist.
        if store.put_new(f"{prefix}/{MANIFEST}", manifest.canonical()):
            _require_files(store, prefix, manifest)
            with suppress(MoonflowError):  # it is published, and the next one removes what is left
                remove_unnamed(store, prefix)
            return manifest
        if (taken := find(store, prefix)) is not None:
            break  # else it was taken back, or was damaged and is removed
    if taken is None:
        raise MoonflowError(f"{uri}/{MANIFEST} cannot be written, yet is not there: `moonflow doctor` checks the store")
    # An answer may have been lost: the manifest there can be this one, whose files must stay.
    mine = {file.path for file in manifest.files if file.key} - {file.path for file in taken.files}
    with suppress(MoonflowError):
        _remove(store, prefix, mine)
    return _same(taken, manifest)


def add(store: ObjectStore, prefix: str, folder: Path) -> tuple[File, ...]:
    """Upload every file of ``folder`` to ``prefix``, for a manifest that is not there yet; returns its entries.

    What a failed call has uploaded is removed again, so that a full store has its room back.
    """
    paths = _files(folder)
    attempt = f"{_ATTEMPT}{secrets.token_hex(6)}"
    keys = [f"{attempt}/{path.relative_to(folder).as_posix()}" for path in paths]
    with ThreadPoolExecutor(_THREADS) as uploads, ThreadPoolExecutor(_THREADS) as hashes:
        sent = [uploads.submit(store.upload, path, f"{prefix}/{key}") for path, key in zip(paths, keys, strict=True)]
        try:
            described = list(hashes.map(lambda path: describe(path, folder), paths))  # while they are on their way
            for upload in sent:
                upload.result()
        except Exception:
            uploads.shutdown(cancel_futures=True)
            with suppress(MoonflowError):  # the store may be what fails; whoever publishes there next removes the rest
                _remove(store, prefix, keys)
            raise
    return tuple(file.model_copy(update={"key": key}) for file, key in zip(described, keys, strict=True))


def remove_unnamed(store: ObjectStore, prefix: str) -> None:
    """Remove the publishers' folders at ``prefix`` that its manifest does not name: their publishers died or lost.

    If there is no manifest, nothing is removed: one may be on its way.
    """
    # Listed first: what is published from now on is not on the list.
    paths = [key.removeprefix(f"{prefix}/") for key in store.list(f"{prefix}/{_ATTEMPT}")]
    if paths and (manifest := find(store, prefix)) is not None:
        _remove(store, prefix, unnamed(manifest, paths))


def unnamed(manifest: Manifest, paths: Iterable[str]) -> set[str]:
    """Those of ``paths``, below the manifest's prefix, that are in a publisher's folder and that it does not name."""
    return {path for path in paths if path.startswith(_ATTEMPT)} - {file.path for file in manifest.files}


def _require_files(store: ObjectStore, prefix: str, manifest: Manifest) -> None:
    """Take the manifest back if a file of it was removed while the others were on their way."""
    there = set(store.list(f"{prefix}/"))
    gone = [file for file in manifest.files if f"{prefix}/{file.path}" not in there]
    if gone:
        withdraw(store, prefix, manifest.canonical())
        raise Unavailable(
            f"{manifest.uri}: {gone[0].name} was removed while it was published: another process works on this run; "
            "end one of them, then run again"
        )


def withdraw(store: ObjectStore, prefix: str, data: bytes) -> None:
    """Remove the manifest at ``prefix`` if it still has these bytes: another process may have replaced it."""
    with suppress(NotInStore):
        if store.get(f"{prefix}/{MANIFEST}") == data:
            store.delete(f"{prefix}/{MANIFEST}")


def _remove(store: ObjectStore, prefix: str, paths: Iterable[str]) -> None:
    for path in sorted(paths):
        store.delete(f"{prefix}/{path}")


def _files(folder: Path) -> list[Path]:
    """What to publish: all but the folder's own manifest. MoonflowError for a name that no object can have."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    if not paths:
        raise MoonflowError(f"{folder} holds no files: nothing to publish")
    for path in paths:
        checked(path.relative_to(folder).as_posix())
    return paths


def prefix_of(uri: str) -> str:
    """The prefix of an output; ``uri`` is that prefix or the address of its manifest."""
    return uri.removesuffix(f"/{MANIFEST}").removesuffix("/")


def read(store: ObjectStore, uri: str) -> Manifest:
    """The manifest at ``uri`` (the prefix or its manifest.json); NotInStore if missing, Damaged if damaged."""
    prefix = prefix_of(uri)
    try:
        data = store.get(f"{prefix}/{MANIFEST}")
    except NotInStore:
        raise NotInStore(
            f"{store.uri(prefix)} has no {MANIFEST}: its step never finished writing it; run that step again or "
            "name another checkpoint"
        ) from None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise Damaged(
            f"{store.uri(prefix)}/{MANIFEST} is damaged ({field}: {first['msg']})",
            f"delete {store.uri(prefix)} or choose the previous checkpoint",
            data,
        ) from None


def find(store: ObjectStore, prefix: str) -> Manifest | None:
    """The manifest at ``prefix``, or None if the prefix does not exist."""
    try:
        return read(store, prefix)
    except NotInStore:
        return None


def fetch(store: ObjectStore, uri: str, folder: Path, names: Iterable[str] | None = None) -> Manifest:
    """Bring the files of the manifest at ``uri`` (all, or ``names``) to ``folder``, each checked by size and SHA-256.

    Files already there with the right digest are not transferred again. Damaged names a wrong or missing one.
    """
    manifest = read(store, uri)
    fetch_files(store, uri, manifest, folder, names)
    return manifest


def fetch_files(
    store: ObjectStore, uri: str, manifest: Manifest, folder: Path, names: Iterable[str] | None = None
) -> None:
    """``fetch`` with a manifest that the caller has read, and perhaps compared with a digest; it is not read again."""
    by_name = {file.name: file for file in manifest.files}
    wanted = list(by_name) if names is None else list(names)
    for name in wanted:
        if name not in by_name:
            raise MoonflowError(f"{manifest.uri} holds no file {name!r} (it has {', '.join(by_name)})")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)  # what a killed fetch left there
    with ThreadPoolExecutor(_THREADS) as pool:
        # The location asked for, not manifest.uri: a copied or mirrored prefix must be read from where it is.
        prefix = prefix_of(uri)
        list(pool.map(lambda name: _fetch_file(store, prefix, by_name[name], folder / name), wanted))


def describe(path: Path, folder: Path) -> File:
    """The manifest entry of a local file below ``folder``."""
    return File(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch_file(store: ObjectStore, prefix: str, file: File, path: Path) -> None:
    if path.is_file() and path.stat().st_size == file.size and file_sha256(path) == file.sha256:
        return
    where = f"{store.uri(prefix)}/{file.path}"
    remedy = f"delete {store.uri(prefix)} or choose the previous checkpoint"
    try:
        store.download(f"{prefix}/{file.path}", path)
    except NotInStore:
        raise Damaged(f"{where} is missing although the manifest names it", remedy) from None
    size = path.stat().st_size
    if size == file.size and file_sha256(path) == file.sha256:
        return
    path.unlink()
    if size < file.size:
        raise Damaged(f"{where} is truncated: expected {file.size} bytes, got {size}", remedy)
    raise Damaged(f"{where} is damaged: {size} bytes (expected {file.size}) and another SHA-256", remedy)


def _same(existing: Manifest, wanted: Manifest) -> Manifest:
    """``existing`` if it holds what ``wanted`` would: a retry after a lost answer, or a re-run of the same work."""
    if [file.content for file in existing.files] != [file.content for file in wanted.files]:
        raise Unavailable(f"{existing.uri} already holds another output: use a new run id or delete that prefix")
    return existing
