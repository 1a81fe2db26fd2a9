"""Files of a checkpoint that somebody else wrote, wherever they are (ours)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown


class SourceFiles(Protocol):
    """The files of one checkpoint.

    Attributes:
        where: what messages call the place: a folder, a URI.
    """

    where: str

    def names(self) -> list[str]:
        """The files that there are, without folders."""
        ...

    def open(self, name: str) -> AbstractContextManager[Path]:
        """The file's bytes at a local path, which is valid inside the ``with``."""
        ...


class LocalFolder:
    """A folder on this machine, as ``SourceFiles``.

    Others may have written it, for example into a Git repository: a link in it could lead to any file of the user's,
    which would be published. So a link counts only if it leads to a file in the folder, or in the cache of
    huggingface_hub, whose snapshots consist of links to ``../../blobs/``.

    Raises:
        MoonflowError: there is no such folder, or it cannot be read; a file that is opened is a link to elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MoonflowError(f"no checkpoint folder at {folder}; give the folder with its config.json")
        self.where, self._folder = str(folder), folder

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.is_file())
        except OSError as error:
            raise MoonflowError(f"{self.where} cannot be read ({error.strerror}); check its permissions") from None

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        folder = Path(os.path.realpath(self._folder))
        file = Path(os.path.realpath(folder / name))
        allowed = [folder]
        if folder.parent.name == "snapshots":
            allowed.append(folder.parents[1] / "blobs")
        if not any(file.is_relative_to(place) for place in allowed):
            raise MoonflowError(
                f"{self.where}/{shown(name)} is a link to outside of the folder; put the file itself there"
            )
        yield file


class HashedFiles:
    """``SourceFiles`` of which every file that is opened is hashed.

    Attributes:
        where: that of the source.
        names: that of the source, as a set.
        sha256: name -> digest, in hex, of each file that was opened.
    """

    def __init__(self, source: SourceFiles) -> None:
        self.where, self.names = source.where, frozenset(source.names())
        self.sha256: dict[str, str] = {}
        self._source = source

    def place(self, name: str) -> str:
        """What messages call a file."""
        return f"{self.where}/{shown(name)}"

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """The file at a local path; raises MoonflowError when there is none of that name, or it cannot be read."""
        if name not in self.names:
            raise MoonflowError(f"{self.where} has no {shown(name)}; fetch the whole checkpoint")
        with self._source.open(name) as path:
            try:
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                told = f"{self.place(name)} cannot be read ({error.strerror}); check its permissions, or fetch it again"
                raise MoonflowError(told) from None
            if self.sha256.setdefault(name, digest) != digest:
                raise MoonflowError(
                    f"{self.place(name)} changed while it was read; import a checkpoint that is complete"
                )
            yield path

    def text(self, name: str, most_bytes: int) -> str:
        """A whole file as text; raises MoonflowError also when it is larger than ``most_bytes``."""
        with self.open(name) as path:
            self.require_size(name, path, most_bytes)
            return path.read_bytes().decode(errors="replace")

    def require_size(self, name: str, path: Path, most_bytes: int) -> None:
        """MoonflowError when a file that was opened at ``path`` is larger than ``most_bytes``."""
        if path.stat().st_size > most_bytes:
            raise MoonflowError(f"{self.place(name)} has more than {most_bytes:,} bytes; it is not a checkpoint's")

    def revision(self) -> str:
        """A sha256, in hex, of the names and digests of all files that were opened: it tells one state of the source
        from every other, wherever the files lie."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sha256.items()))
        return hashlib.sha256(lines.encode()).hexdigest()
