"""Records that wait on disk until they are sent: a file of JSON lines, held by one process at a time."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

TORN = {"kind": "torn"}
"""What is read in the place of a line that a killed process did not finish."""


class Spool:
    """The records of one step, and how far they are sent.

    ``<step>.jsonl`` holds the records; ``<step>.sent`` holds the offset up to which they are sent, so that a restart
    sends none of them twice. Records are appended and sent by different threads.
    """

    def __init__(self, path: Path, *, wait: bool = True) -> None:
        """Open the file, which is made if it is missing, and lock it until ``close``.

        If another process holds it: wait until that process lets go, or raise BlockingIOError without ``wait``.
        """
        self.path = path
        self._sent = path.with_suffix(".sent")
        self._guard = threading.Lock()
        self._stream = path.open("a+")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._stream.write("\n")  # ends the torn line, so that the next record has one of its own
        self._offset = 0
        with suppress(OSError, ValueError):
            self._offset = int(self._sent.read_text())

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. On a full disk, or after ``close``, it is lost: that must not stop training."""
        with self._guard, suppress(OSError, ValueError):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, also those that are sent."""
        return (record for record, _ in self._read(0))

    def unsent(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The records that are not sent yet, oldest first, each with the offset after it."""
        return self._read(self._offset)

    def mark(self, offset: int) -> None:
        """Note that all records before ``offset`` are sent."""
        self._offset = offset
        with suppress(OSError):
            self._sent.write_text(str(offset))

    def close(self) -> bool:
        """Let go of the file; returns whether everything was sent, in which case the file is removed."""
        with self._guard:
            if done := self.done:
                self.path.unlink(missing_ok=True)
                self._sent.unlink(missing_ok=True)
            self._stream.close()
        return done

    @property
    def done(self) -> bool:
        """Whether everything is sent."""
        return self.path.exists() and self._offset >= self.path.stat().st_size

    def _read(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Whole lines from ``offset`` on (bytes; the file is ASCII), and the offset after each."""
        with self.path.open() as stream:
            stream.seek(offset)
            while (line := stream.readline()).endswith("\n"):
                offset += len(line)
                try:
                    yield json.loads(line), offset
                except ValueError:
                    yield TORN, offset
