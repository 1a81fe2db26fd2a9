"""What an encoded file says of its own structure, read before Pillow or FFmpeg act on it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Markers of a JPEG, but for stuffed zeros, restarts and fill bytes, which stand within a scan.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# Boxes of an MP4 that state counts: the length before the name, and the fields behind it. They may overlap.
COUNTS = re.compile(rb"(?=(.{4})(stsz|stz2|trun|elst|cmov)(.{0,20}))", re.DOTALL)


def late_exif(png: bytes) -> bytes | None:
    """EXIF data behind a PNG's pixels, where ImageMagick writes them; Pillow would decode the pixels to find them."""
    at = 8
    while b"eXIf" in png and at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"eXIf":
            return png[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def jpeg_scans(jpeg: bytes) -> int:
    """How many passes over its pixels a JPEG has."""
    at, scans = 0, 0
    while (found := MARKER.search(jpeg, at)) and (marker := found[1][0]) != 0xD9:  # end of image
        at = found.end()
        if marker not in (0x01, 0xD8):  # all others have a length
            at += int.from_bytes(jpeg[at : at + 2], "big")
        scans += marker == 0xDA
    return scans


def mp4_index(mp4: bytes) -> tuple[int, int, bool]:
    """How many samples and edits an MP4 states in all its tracks, and whether its header is compressed.

    The boxes with counts are found by their names wherever they are, except in the frames' own bytes: FFmpeg also reads
    them in places where they do not belong.
    """
    samples, edits, compressed = 0, 0, False
    for start, end in _boxes_but_frames(mp4):
        for match in COUNTS.finditer(mp4[start:end]):
            length, kind, fields = match.groups()
            if length == b"\0\0\0\1":  # the true length, of 64 bits, stands behind the name
                fields = fields[8:]
            if kind == b"cmov":
                compressed = True
            elif kind == b"elst":
                edits += int.from_bytes(fields[4:8], "big")
            else:
                samples += int.from_bytes(fields[4:8] if kind == b"trun" else fields[8:12], "big")
    return samples, edits, compressed


def _boxes_but_frames(mp4: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each box of the outermost level, but for those of frames.

    All of the file is one where a segment index (sidx) lets FFmpeg jump among the frames' bytes.
    """
    at, found = 0, []
    while at + 16 <= len(mp4):
        length, kind = struct.unpack_from(">I4s", mp4, at)
        if length == 1:
            length = struct.unpack_from(">Q", mp4, at + 8)[0]
        end = at + length if length >= 8 else len(mp4)
        if kind != b"mdat":
            found.append((at, end))
        at = end
    found.append((at, len(mp4)))
    yield from [(0, len(mp4))] if any(mp4.find(b"sidx", *span) >= 0 for span in found) else found
