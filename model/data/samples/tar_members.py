"""Which members of a tar belong to which sample, and where they are, whoever wrote the tar (format: webdataset)."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from typing import BinaryIO

from model.data.samples.files import is_system_file
from model.data.samples.shard_source import BrokenShard

COMPRESSED = {  # by the first bytes of the file
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip
STRIDE = 2**20  # bytes that are read at once to find what follows an archive's end


@dataclass
class Members:
    """Consecutive files of one key.

    Attributes:
        byte_ranges: extension -> (offset, bytes) in the tar.
        problem: why they cannot be read as a sample, or "".
    """

    key: str
    byte_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str = ""


class MembersByKey:
    """The members of a tar, or of several concatenated tars, in their order.

    Attributes:
        samples: those that are certainly whole.
        skipped: names of members that cannot belong to a sample: without a key, or files of a system.
        damage: what is wrong with the rest of the tar, after ``samples``; None if nothing is.
    """

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self.samples: list[Members] = []
        self.skipped: list[str] = []
        self.damage: BrokenShard | None = None
        self._stream, self._label = stream, label
        self._seen: set[str] = set()
        self._size = stream.seek(0, io.SEEK_END)
        self._last, self._open = "none", Members("")
        try:
            self._begin()
            start: int | None = 0
            while start is not None:
                start = self._following(self._archive(start))
        except BrokenShard as damage:
            self.damage = damage
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError, OSError, RecursionError) as error:
            # ``tarfile`` raises any of these for headers that make no sense.
            self.damage = BrokenShard(
                f"shard {label}, after member {self._last!r}: {error or type(error).__name__}; fetch or make it again"
            )

    def _begin(self) -> None:
        head = self._read(0, 8)
        for magic, name in COMPRESSED.items():
            if head.startswith(magic):
                raise BrokenShard(f"shard {self._label} is compressed ({name}), not a plain tar: decompress it")

    def _archive(self, start: int) -> int:
        """Read the headers of the archive at ``start``; returns where it ends."""
        self._stream.seek(start)
        with tarfile.open(fileobj=self._stream, mode="r:") as tar:
            for info in tar:
                self._last = info.name
                if info.size < 0:  # going on would read the same members for ever
                    raise tarfile.ReadError(f"a size of {info.size} bytes")
                end = info.offset_data + info.size
                if info.isreg() and not info.issparse() and end > self._size:
                    raise BrokenShard(
                        f"shard {self._label}, member {self._last!r}: cut short by {end - self._size} bytes; "
                        "fetch or make it again"
                    )
                self._take(info)
            # tarfile takes a broken or missing header for the end of the archive: samples would vanish silently.
            closing = self._read(tar.offset, tarfile.BLOCKSIZE)
            if len(closing) < tarfile.BLOCKSIZE or any(closing):
                raise tarfile.ReadError("broken header or missing end of archive")
            self._close()
            return tar.offset

    def _take(self, info: tarfile.TarInfo) -> None:
        if info.isdir():
            return
        folder, slash, base = info.name.removeprefix("./").rpartition("/")
        stem, dot, extension = base.partition(".")  # webdataset: the key ends at the first dot
        key = folder + slash + stem
        if is_system_file(info.name) or not stem or not dot:
            self.skipped.append(info.name)
            return
        if key != self._open.key or extension in self._open.byte_ranges:
            self._close()
            self._open = Members(key)
            if key in self._seen:
                self._open.problem = f"key {key!r} occurs again: put all members of a key side by side, or rename them"
            self._seen.add(key)
        self._open.byte_ranges[extension] = (info.offset_data, info.size)
        if not info.isreg():
            self._open.problem = f"member {info.name!r} is a link or device: write the file itself"
        elif info.issparse():
            self._open.problem = f"member {info.name!r} is a sparse file: write it whole"
        elif not info.name.isascii() and _has_surrogates(info.name):
            self._open.problem = f"the name of member {info.name!r} is not UTF-8: rename it"

    def _close(self) -> None:
        if self._open.key:
            self.samples.append(self._open)
        self._open = Members("")

    def _following(self, end: int) -> int | None:
        """Where another archive begins, appended as ``cat`` does it, or None. Zeros alone are padding."""
        while block := self._read(end, STRIDE):
            if any(block):
                return end + next(n for n, byte in enumerate(block) if byte) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            end += len(block)
        return None

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)


def _has_surrogates(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)
