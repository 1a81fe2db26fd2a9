"""What a source is, found by looking at it: a manifest of ours, a folder in Hugging Face's form, or a repository."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from components.import_checkpoint import hub
from components.import_checkpoint.config import HUB, LAID_OUT
from components.import_checkpoint.origin import Origin
from components.release.git import one_line
from components.release.signing import SIGNATURE, STATEMENT
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import MANIFEST, METRICS, Damaged, Manifest
from components.runtime.checkpoints.step_checkpoints import indices
from components.runtime.datasets.user_data import store_of
from components.runtime.steps import IMPORTED, TRAINING_STEPS
from components.runtime.store.address import FILE, Address, is_address, path_fault
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import CONFIG
from model.checkpoint.folder import serves
from model.checkpoint.importing import LocalFolder, SourceFiles


@dataclass(frozen=True)
class Source:
    """A checkpoint to import.

    Attributes:
        files: what it consists of, without what only training needs.
        foreign: whether it was not made by moonflow.
        revision: the commit of a repository, or the address at which a manifest was read; "" for a folder.
        manifest: hex digest of a manifest of ours; "" for others.
        published: name -> hex digest of the files for which one is known.
        origin: the checkpoint that it was trained from, as its manifest says; None if it was trained from none.
    """

    files: SourceFiles
    foreign: bool
    revision: str = ""
    manifest: str = ""
    published: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None


def find(source: str, revision: str, work: Path) -> Source:
    """The checkpoint that ``import_checkpoint.source`` names.

    Args:
        work: a folder for copies of its files, which are removed when they have been read.

    Raises:
        MoonflowError: there is no checkpoint, or it cannot be reached; the line names the key or the place.
    """
    if not source:
        raise MoonflowError(
            "import_checkpoint.source is empty: name the checkpoint to start from, for example s3://bucket/runs/base"
        )
    if source.startswith(HUB):
        found = hub.Repository.find(source.removeprefix(HUB), revision, work)
        return Source(found, foreign=True, revision=found.commit, published=found.published)
    if is_address(source):
        return _at(source, work)
    folder = Path(os.environ.get(LAID_OUT) or os.path.expanduser(source))
    if not os.path.isdir(folder):
        raise MoonflowError(
            f"import_checkpoint.source: there is no folder {source} here; name one, or an address (a run's folder such "
            "as runs/tiny can be named in `moonflow run` only)"
        )
    return _at(f"{FILE}{folder.resolve()}", work)


def _at(address: str, work: Path) -> Source:
    prefix = manifests.prefix_of(address)
    store = _store_at(prefix)
    folder = Path(prefix.removeprefix(FILE)) if prefix.startswith(FILE) else None
    # A folder not through the store, which refuses links: the cache of huggingface_hub consists of them.
    foreign = store.exists(f"{prefix}/{CONFIG}") if folder is None else (folder / CONFIG).is_file()
    if found := _ours(store, prefix, foreign):
        where, manifest = found
        files, uri = Published(store, where, manifest, work), store.uri(where)
        digests = {file.name: file.sha256 for file in manifest.files}
        return Source(files, False, uri, manifest.sha256, digests, Origin.of(manifest, uri))
    if foreign:
        return Source(Prefix(store, prefix, work) if folder is None else LocalFolder(folder), foreign=True)
    raise MoonflowError(
        f"import_checkpoint.source: {address} holds no checkpoint: neither a complete one of ours, there or in a step "
        f"below, nor the {CONFIG} of a Hugging Face folder; name another one"
    )


def _ours(store: ObjectStore, prefix: str, foreign: bool) -> tuple[str, Manifest] | None:
    """``newest_checkpoint``; in a folder of Hugging Face's form, other programs may have a manifest.json of theirs."""
    if foreign and prefix.startswith(FILE) and Path(prefix.removeprefix(FILE), MANIFEST).is_symlink():
        return None
    try:
        return newest_checkpoint(store, prefix)
    except Damaged:
        if foreign:
            return None
        raise


def newest_checkpoint(store: ObjectStore, prefix: str) -> tuple[str, Manifest] | None:
    """Where the newest complete checkpoint at ``prefix`` lies, and its manifest: of a run, of a step, or the one there.

    None if there is none. Raises MoonflowError if the manifest at ``prefix`` itself is no checkpoint's.
    """
    if (named := manifests.find(store, prefix)) is not None:
        if named.kind != "checkpoint":
            raise MoonflowError(
                f"{prefix} is what {one_line(named.step)} wrote ({named.kind}), not a checkpoint; name a step that "
                "trains"
            )
        return prefix, named
    below = store.folders(f"{prefix}/")
    # Of two that were made within one second, the one of the later step: it is looked at first.
    steps = [f"{prefix}/{step}" for step in reversed((IMPORTED, *TRAINING_STEPS)) if step in below]
    found = [each for step in (prefix, *steps) if (each := _newest_of_step(store, step)) is not None]
    return max(found, key=lambda each: each[1].created_at, default=None)


def _newest_of_step(store: ObjectStore, prefix: str) -> tuple[str, Manifest] | None:
    """None if there is none. Raises the newest one's Damaged if there is none but damaged ones."""
    damaged: Damaged | None = None
    for index in indices(store, prefix):
        try:
            manifest = manifests.find(store, f"{prefix}/{index}")
        except Damaged as error:
            damaged = damaged or error
            continue
        if manifest is not None and manifest.complete and manifest.kind == "checkpoint":
            return f"{prefix}/{index}", manifest
    if damaged is not None:
        raise damaged
    return None


def _store_at(prefix: str) -> ObjectStore:
    """The store that holds an address, whatever MOONFLOW_STORE names."""
    address = Address.parse(prefix)
    return open_store({"MOONFLOW_STORE": prefix}) if address.scheme == "file" else store_of(prefix)


class Published:
    """``SourceFiles`` of a manifest: each is compared with its digest."""

    def __init__(self, store: ObjectStore, prefix: str, manifest: Manifest, work: Path) -> None:
        self.where, self._store, self._work = prefix, store, work
        files = manifest.files
        if not any(store.exists(f"{prefix}/{file.path}") for file in files):
            # A folder that was fetched has the files under their plain names, next to their manifest.
            files = tuple(file.model_copy(update={"key": ""}) for file in files)
        self._manifest = manifest.model_copy(update={"files": files})

    def names(self) -> list[str]:
        ours = (METRICS, SIGNATURE, STATEMENT)
        return sorted(file.name for file in self._manifest.files if serves(file.name) and file.name not in ours)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        manifests.fetch_files(self._store, self.where, self._manifest, self._work, [name])
        with _lent(self._work / name) as path:
            yield path


class Prefix:
    """``SourceFiles`` below an ``s3://`` prefix that no manifest describes; what lies deeper is left out."""

    def __init__(self, store: ObjectStore, prefix: str, work: Path) -> None:
        self.where, self._store, self._work = prefix, store, work
        found = (key.removeprefix(f"{prefix}/") for key in store.list(f"{prefix}/"))
        self._names = sorted(name for name in found if name and "/" not in name and not path_fault(name))

    def names(self) -> list[str]:
        return list(self._names)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        self._work.mkdir(parents=True, exist_ok=True)
        self._store.download(f"{self.where}/{name}", self._work / name)
        with _lent(self._work / name) as path:
            yield path


@contextmanager
def _lent(path: Path) -> Iterator[Path]:
    """A copy that is removed afterwards."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
