"""The structure that an encoded file states, read before Pillow or FFmpeg act on it."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

# Markers of a JPEG that are followed by a length, and the marker of the image's end.
MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
# Boxes of an MP4 that state a number of samples or edits -> the number's offset after the box's name.
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
# The most outermost boxes of an MP4 that are read (ours). An hour in fragments of a second has 7,200.
MAX_BOXES = 10_000


class TooManyPieces(Exception):
    """A header has more pieces than its reader may read."""


class Header(io.BytesIO):
    """An encoded file whose header Pillow may read in at most ``pieces`` reads. Pillow reads a header's small parts one
    by one, and joins some of them again each time: a file that has nothing else takes minutes."""

    def __init__(self, data: bytes, pieces: int) -> None:
        super().__init__(data)
        self._left: float = pieces

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyPieces
        return super().read(size)

    def end(self) -> None:
        """Call it once the header is read: later reads have no bound."""
        self._left = float("inf")


def late_exif(png: bytes) -> bytes | None:
    """EXIF data after a PNG's pixels, where ImageMagick writes them; Pillow would decode the pixels to find them."""
    at = 8 if b"eXIf" in png else len(png)
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"eXIf":
            return png[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def transparent_as_decoded(png: bytes, value: Any) -> Any:
    """The transparent colour of a PNG without a palette, in the values of its pixels of 8 bits.

    Pillow scales the pixels to 8 bits and leaves this colour as it is in the file.
    """
    depth, kind = png[24:26]
    if (depth, kind) == (16, 2):
        return tuple(part >> 8 for part in value)
    return value * (255 // (2**depth - 1)) if kind == 0 and depth in (2, 4) else value


def jpeg_scans(jpeg: bytes) -> int:
    """How many passes over its pixels a JPEG has."""
    at, scans = 0, 0
    while (found := MARKER.search(jpeg, at)) and (marker := found[1][0]) != 0xD9:  # end of image
        at = found.end()
        at += int.from_bytes(jpeg[at : at + 2], "big")
        scans += marker == 0xDA
    return scans


def mp4_index(mp4: bytes) -> tuple[int, int, bool]:
    """How many samples and edits an MP4 states in all its tracks, and whether its header is compressed.

    The boxes with counts are found by their names wherever they are, except in the frames' own bytes: FFmpeg also reads
    them in places where they do not belong.
    """
    spans = _boxes_but_frames(mp4)
    stated = {name: sum(_counts(mp4, name, *span) for span in spans) for name in COUNTS}
    compressed = any(mp4.find(b"cmov", *span) >= 0 for span in spans)
    edits = stated.pop(b"elst")
    return sum(stated.values()), edits, compressed


def _counts(mp4: bytes, name: bytes, start: int, end: int) -> int:
    total = 0
    while (start := mp4.find(name, start, end)) >= 0:
        long = mp4[start - 4 : start] == b"\0\0\0\1"  # the true length, of 64 bits, follows the name
        start += 4
        at = start + COUNTS[name] + 8 * long
        total += int.from_bytes(mp4[at : at + 4], "big")
    return total


def _boxes_but_frames(mp4: bytes) -> list[tuple[int, int]]:
    """Start and end of each box of the outermost level, except those of frames.

    The whole file counts as one box if a segment index (sidx) lets FFmpeg jump among the frames' bytes, or if there are
    too many boxes: a megabyte of empty ones took a third of a second.
    """
    at, boxes, found = 0, 0, []
    while at + 16 <= len(mp4):
        length, kind = struct.unpack_from(">I4s", mp4, at)
        if length == 1:
            length = struct.unpack_from(">Q", mp4, at + 8)[0]
        end = at + length if length >= 8 else len(mp4)
        if kind != b"mdat":
            found.append((at, end))
        boxes += 1
        if boxes > MAX_BOXES:
            return [(0, len(mp4))]
        at = end
    found.append((at, len(mp4)))
    return [(0, len(mp4))] if any(mp4.find(b"sidx", *span) >= 0 for span in found) else found
