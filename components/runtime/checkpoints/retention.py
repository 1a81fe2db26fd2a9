"""Which checkpoints of a step stay in the object store (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import MANIFEST, Damaged, Manifest
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError

KEEP = 2  # newest checkpoints of an unfinished step: one to resume from, one if that is found damaged
METRICS = "metrics"
"""Where a manifest's ``extra`` holds the figures that the step had logged last."""


@dataclass
class Retention:
    """Removes outputs of a step, except the ``last`` newest, complete ones, the best, and those in use.

    An output is in use if another manifest in the store names it as its parent, or a promotion names it.

    Attributes:
        last: newest outputs that stay, at least one.
        best: name of a metric in the manifests; the output where it is lowest stays (highest if it is neither a loss
            nor a perplexity). Empty: none stays for its metric.
    """

    last: int = KEEP
    best: str = ""
    _named: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)  # manifest's key -> digests it names

    def apply(self, store: ObjectStore, prefix: str) -> None:
        """Remove the outputs of ``<run>/<step>`` that need not stay. Call it once a newer output is durable.

        MoonflowError if no output has the metric ``best``.
        """
        # Keys are listed, not folders: a store may show empty folders for a while.
        files: dict[int, list[str]] = {}
        for key in store.list(f"{prefix}/"):
            folder = key.removeprefix(f"{prefix}/").split("/")[0]
            if folder.isdigit():
                files.setdefault(int(folder), []).append(key)
        newest_first = sorted(files, reverse=True)
        found: dict[int, Manifest] = {}
        unfinished: list[int] = []
        for index in newest_first:
            try:
                manifest = manifests.find(store, f"{prefix}/{index}")
            except Damaged:
                continue  # its manifest cannot be read
            if manifest is not None:
                found[index] = manifest
                # Files of a publisher that died, perhaps after another one had published first.
                paths = [key.removeprefix(f"{prefix}/{index}/") for key in files[index]]
                remove(store, [f"{prefix}/{index}/{path}" for path in manifests.unnamed(manifest, paths)])
            if manifest is None or not manifest.complete:
                unfinished.append(index)
        if len(newest_first) <= self.last:
            return
        if self.best and best(found, self.best) is None:
            known = sorted({name for manifest in found.values() for name in manifest.extra.get(METRICS, {})})
            raise MoonflowError(
                f"keep_best = {self.best!r}: no checkpoint below {store.uri(prefix)} has that metric; "
                f"they have {', '.join(known) or 'none'}"
            )
        stays = {*newest_first[: self.last], best(found, self.best)}
        leaving = [index for index in unfinished if index not in stays]
        if not leaving:
            return
        used = self._used(store)
        for index in leaving:
            if index not in found or found[index].sha256 not in used:
                remove(store, files[index])

    def _used(self, store: ObjectStore) -> set[str]:
        """Digests of all manifests that another one in the store names. Each is read once: they do not change."""
        keys = [key for key in store.list() if key.endswith(f"/{MANIFEST}")]
        for key in keys:
            if key not in self._named:
                self._named[key] = _names(store, key)
        return {digest for key in keys for digest in self._named[key]}


def best(found: Mapping[int, Manifest], metric: str) -> int | None:
    """The index whose manifest has the best value of ``metric``, the newest of equals; None if none has it."""
    values = {index: manifest.extra.get(METRICS, {}).get(metric) for index, manifest in found.items()}
    known = {index: float(value) for index, value in values.items() if value is not None and math.isfinite(value)}
    sign = 1 if metric.startswith(("loss", "perplexity")) else -1
    return min(known, key=lambda index: (sign * known[index], -index), default=None)


def remove(store: ObjectStore, keys: Iterable[str]) -> None:
    """Delete the objects of one output."""
    # The manifest goes first: without it the prefix does not exist, even if its files stay.
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        store.delete(key)


def _names(store: ObjectStore, key: str) -> frozenset[str]:
    try:
        manifest = manifests.find(store, key.removesuffix(f"/{MANIFEST}"))
    except Damaged:
        return frozenset()
    if manifest is None:  # it was removed meanwhile
        return frozenset()
    promoted = manifest.extra.get("manifest_sha256") if manifest.kind == "promotion" else None
    return frozenset({*manifest.parents, *([promoted] if promoted else [])})
