"""Import: a checkpoint from elsewhere becomes this run's first checkpoint, and its origin is recorded.

Everything trained from it repeats the origin in its manifest and carries the licence among its files. A killed attempt
starts again from nothing; what it had published does not exist without its manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.import_checkpoint.config import Config
from components.import_checkpoint.origin import Origin
from components.import_checkpoint.sources import find
from components.runtime.checkpoints.manifest import ORIGIN, Manifest
from components.runtime.step import StepContext
from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import is_licence
from model.checkpoint.importing import SourceFiles, import_checkpoint
from model.train.protocol import Progress

WEIGHTS = ".safetensors"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. What the source is, by looking.
    source = find(config.source, config.revision, context.work / "source")

    # 2. Its files, one at a time, as a checkpoint folder of ours: weights, tokenizer and image settings go together.
    folder = context.work / "checkpoint"
    imported = import_checkpoint(Counted(source.files, context.progress), folder)
    for name, digest in imported.sha256.items():
        if source.published.get(name, digest) != digest:
            raise MoonflowError(f"{source.files.where}: {name} is not what was published there: fetch it again")

    # 3. With it, where it came from and under which licence.
    licences = sorted(path.name for path in folder.iterdir() if is_licence(path.name))
    origin = Origin(  # type: ignore[call-arg]  # mypy takes the alias of `before` for its only name
        source=config.source,
        revision=source.revision,
        sha256=source.manifest or imported.revision,
        licences=tuple(licences),
        before=source.origin,
    )
    extra: dict[str, Any] = {ORIGIN: origin.stated(), "files_read": imported.sha256, "precision": imported.precision}
    if source.foreign and not licences:
        context.warn(f"{source.files.where} holds no licence file: look up its terms before you use the model")
    if imported.other_groups:
        context.warn(
            f"{source.files.where}: {imported.other_groups:,} groups of INT4 have another largest level than 7: a "
            "release in INT4 gives them other levels"
        )
    figures = {"files": len(imported.sha256), "bytes": sum(path.stat().st_size for path in folder.iterdir())}
    context.metrics.log({f"import/{name}": float(value) for name, value in figures.items()}, 0)
    return context.publish(folder, kind="checkpoint", complete=True, extra=extra | figures)


class Counted:
    """``SourceFiles`` that reports each file of weights that was read."""

    def __init__(self, files: SourceFiles, progress: Progress) -> None:
        self.where, self._files, self._progress = files.where, files, progress
        self._left = {name for name in files.names() if name.endswith(WEIGHTS)}
        self._total = len(self._left)

    def names(self) -> list[str]:
        return self._files.names()

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        with self._files.open(name) as path:
            yield path
        if name in self._left:
            self._left.remove(name)
            self._progress.update(self._total - len(self._left), self._total)
