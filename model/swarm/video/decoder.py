"""Reads one part of a video: which frames say most, and how bright and how lively it is (source: ours).

The file is hostile and FFmpeg is large: it runs where nothing else can be reached (`model.swarm.video.decoder_server`).

Times are seconds since the file's first frame. A frame is shown until the next one comes, however long that takes.
"""

from __future__ import annotations

import base64
import io
import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.swarm.video.scenes import CUT, change, chosen, histogram

# Demuxers that read the file alone. Lists and session descriptions, which name other files, are none of them.
FORMATS = "mov,matroska,avi,mpegts,flv,mpeg,ogg"
MAX_FRAME_PIXELS = 35_389_440  # 8K; a decoder may keep sixteen frames (ours)
PER_SECOND, CANDIDATES = 4.0, 300  # frames that are compared: so many a second, and at most so many of a part (ours)
THUMB = (64, 36)  # (width, height) in pixels of what is compared
QUALITY = 75  # of JPEG
ALL_FRAMES, ALL_TIME = 0.4, 0.85  # shares of the processor time after which only key frames, and no more, are read


class Unreadable(Exception):
    """The file, or the part, cannot be read; the message says why in one line."""


class _Bytes:
    """A mapped file as PyAV reads it; a wrong place in it is its end, not an error."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, len(self._data))[whence]
        self._at = min(max(0, start + offset), len(self._data))
        return self._at

    def tell(self) -> int:
        return self._at


def mapped(path: str) -> mmap.mmap:
    """A file's bytes. Raises Unreadable: it is no file with something in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    except (OSError, ValueError) as error:
        raise Unreadable(f"it cannot be opened ({getattr(error, 'strerror', error)})") from None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or not about.st_size:
            raise Unreadable("it is empty" if stat.S_ISREG(about.st_mode) else "it is no regular file")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextmanager
def _opened(data: mmap.mmap | bytes) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    limits = {"max_pixels": str(MAX_FRAME_PIXELS)}
    alone = {"protocol_whitelist": "", "format_whitelist": FORMATS}
    with av.open(_Bytes(data), options=limits, container_options=alone) as container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise Unreadable("it has no video stream that can be decoded")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # a confined process has one thread
        stream.codec_context.options = limits
        yield container, stream


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands; packets that cannot be decoded are left out."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _origin(stream: Any) -> float:
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def probe(data: mmap.mmap | bytes, cpu_s: float) -> dict[str, Any]:
    """``seconds`` until the last frame ends, ``width``, ``height``, and ``cut``: whether time ran out before its end.

    The last packets decide: what a header says of the duration may be missing or wrong.
    """
    with _opened(data) as (container, stream):
        first = next(_frames(container, stream), None)
        if first is None:
            raise Unreadable("it has no frame that can be decoded")
        stated = float(container.duration or 0) / av.time_base
        seconds, cut = _last(container, stream, stated, cpu_s)
        if not seconds:
            seconds, cut = _last(container, stream, 0.0, cpu_s)
        shape = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
        return {"seconds": max(seconds, 1e-3), "width": shape[0], "height": shape[1], "cut": cut}


def _last(container: Any, stream: Any, start: float, cpu_s: float) -> tuple[float, bool]:
    """The end of the last packet from ``start`` on, 0 if there is none; and whether time ran out."""
    _seek(container, stream, start)
    end, packets = 0.0, container.demux(stream)
    while time.process_time() < ALL_TIME * cpu_s:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return end, False
        if packet.pts is not None and packet.size:
            shown = (packet.pts + (packet.duration or 0)) * packet.time_base
            end = max(end, float(shown) - _origin(stream))
    return end, True


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the last key frame before a time, or to the start if the file does not say where that is."""
    if not stream.time_base:
        return
    for target in (seconds, 0.0):
        place = int((target + _origin(stream)) / float(stream.time_base))
        try:
            container.seek(place, stream=stream, backward=True)
            return
        except (av.FFmpegError, OverflowError):
            continue


def sample(data: mmap.mmap | bytes, start: float, end: float, frames: int, size: int, cpu_s: float) -> dict[str, Any]:
    """What is seen from ``start`` to ``end``: chosen ``frames``, ``brightness`` and ``motion`` over time.

    ``still``: no new frame comes in the part, and the one before is shown on.
    """
    view = _View(size)
    note, earlier = "", False
    with _opened(data) as (container, stream):
        _seek(container, stream, start)
        spacing, due, at = max(1 / PER_SECOND, (end - start) / CANDIDATES), start, 0.0
        for frame in _frames(container, stream):
            spent = time.process_time() / cpu_s
            if spent > ALL_TIME:
                note = f"only up to {at:.1f} s: its decoding takes too long"
                break
            if spent > ALL_FRAMES and not note:
                stream.codec_context.skip_frame = "NONKEY"
                note = "only key frames from some time on: its decoding takes long"
            at = at if frame.time is None else frame.time - _origin(stream)
            if at >= end:
                break
            earlier |= at < start
            if at >= due and len(view.seconds) < CANDIDATES:
                view.add(frame, at)
                due = at + 0.999 * spacing
    if not view.seconds and (note or not earlier):
        raise Unreadable(note or "no frame in it can be decoded")
    return view.found(frames) | {"note": note, "still": not view.seconds}


class _View:
    """The frames of a part that are compared. ``seconds``: their times."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._last: NDArray[np.uint8] | None = None
        self._jpegs: list[bytes] = []
        self._changes: list[float] = []
        self._bright: list[float] = []
        self._motion: list[float] = []
        self.seconds: list[float] = []

    def add(self, frame: Any, at: float) -> None:
        scale = min(1.0, self._size / max(frame.width, frame.height))
        width, height = (max(2, round(length * scale)) for length in (frame.width, frame.height))
        rgb = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
        thumb = frame.reformat(*THUMB, "rgb24", interpolation="AREA", threads=1).to_ndarray()
        before = thumb if self._last is None else self._last
        self._changes.append(change(histogram(before), histogram(thumb)))
        self._motion.append(float(np.abs(thumb.astype(np.int16) - before).mean()) / 255)
        self._bright.append(float(thumb.mean()) / 255)
        turns = frame.rotation // 90 % 4 if frame.rotation % 90 == 0 else 0
        self._jpegs.append(jpeg(np.ascontiguousarray(np.rot90(rgb, turns))))
        self.seconds.append(round(at, 3))
        self._last = thumb

    def found(self, most: int) -> dict[str, Any]:
        return {
            "frames": [
                {"seconds": self.seconds[n], "jpeg": base64.b64encode(self._jpegs[n]).decode()}
                for n in chosen(self._changes, most)
            ],
            "cuts": [self.seconds[n] for n, value in enumerate(self._changes) if value >= CUT],
            "brightness": [(at, round(value, 4)) for at, value in zip(self.seconds, self._bright, strict=True)],
            # What comes before a part's first frame is in another part.
            "motion": [(at, round(value, 4)) for at, value in zip(self.seconds, self._motion, strict=True)][1:],
        }


def jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def warm_up() -> None:
    """Read a video of two frames: PyAV and Pillow import modules when they first need them, and a confined process
    cannot."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 16, 16, "yuv420p", 1
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())
    now = time.process_time() + 60
    probe(buffer.getvalue(), now)
    sample(buffer.getvalue(), 0.0, 2.0, 1, 16, now)
