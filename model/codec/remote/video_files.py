"""Encoded videos to frames as people see them, within bounds; ``image_files.py`` does images.

Every checkpoint carries this file, and moonflow reads its own videos with it. With ``media_structure.py`` and
``media_errors.py`` it stands alone: it imports nothing else of ours, and PyAV only to read a video.

Whatever is known of a video before its frames are decoded comes from its header. A header can lie: the bounds that are
checked there are checked again while frames are decoded.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .media_errors import MediaError, MediaOverBound
from .media_structure import mp4_index

# The bounds are ours.
# A frame of 4K video, 4096 x 2304; a decoder may keep sixteen of them, 226 MB.
MAX_FRAME_PIXELS = 9_437_184
# Pixels of all frames that are decoded: a minute of 1080p at 60 frames a second.
MAX_VIDEO_PIXELS = 8_000_000_000
# Pixels of the frames that are taken, which are in memory at once: a minute of 1080p at two frames a second, 750 MB.
MAX_TAKEN_PIXELS = 250_000_000
# Entries of an MP4's index: samples of all tracks, once more for every edit. FFmpeg takes up to 120 bytes for each
# before a frame is decoded, and a kilobyte can state a billion. An hour of video has a million, PCM sound more.
MAX_INDEX_ENTRIES = 2_000_000
# Processor seconds for one video; a minute of 1080p H.264 takes 10.
MAX_VIDEO_SECONDS = 30.0

GIVE_VIDEO = "give an MP4, WebM, Matroska or AVI file"


class VideoHeader(NamedTuple):
    """What is known from a video's header and packets, before its frames are decoded.

    Attributes:
        width, height: pixels of a frame as it is stored.
        quarter_turns: counterclockwise, by which a frame is turned to stand upright.
        fps: frames a second on average; 0 where the file does not say.
        frames: number of frames in the file.
    """

    width: int
    height: int
    quarter_turns: int
    fps: float
    frames: int

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of a frame as people see it."""
        return (self.height, self.width) if self.quarter_turns % 2 else (self.width, self.height)

    def taken(self, sample_fps: float, max_frames: int | None) -> list[int]:
        """Numbers of the frames that are taken: evenly spaced from first to last, ``sample_fps`` a second on average.

        Raises:
            MediaOverBound: their pixels are over the bound.
        """
        fps = self.fps or sample_fps
        count = max(1, round(self.frames * min(sample_fps, fps) / fps))
        if max_frames is not None:
            count = min(count, max_frames)
        # The smallest frame still fills one token, 28 x 28 pixels.
        pixels = count * max(self.width * self.height, 28 * 28)
        if pixels > MAX_TAKEN_PIXELS:
            raise MediaOverBound(
                f"video has {count:,} frames of {self.width:,} x {self.height:,} pixels to be taken: give a shorter or "
                f"smaller one, at most {MAX_TAKEN_PIXELS:,} pixels in all of them (MAX_TAKEN_PIXELS)"
            )
        return np.linspace(0, self.frames - 1, count).round().astype(int).tolist()

    def seconds(self, sample_fps: float, max_frames: int | None) -> list[float]:
        """Times of the frames that are taken: their numbers divided by the average rate. Raises what ``taken``
        raises."""
        return [number / (self.fps or sample_fps) for number in self.taken(sample_fps, max_frames)]


def _container(data: bytes) -> str:
    """FFmpeg's name of a video's container, from its first bytes.

    If FFmpeg guessed, it would also read texts that tell it to open addresses: SDP, HLS, concat.
    """
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    raise MediaError(f"video of {len(data):,} bytes cannot be decoded: {GIVE_VIDEO} (its start is of none of these)")


def _check_index(mp4: bytes) -> None:
    """Refuse an MP4 whose index would not fit in memory, before FFmpeg builds it."""
    samples, edits, compressed = mp4_index(mp4)
    if compressed:
        raise MediaError(f"video of {len(mp4):,} bytes has a compressed header (cmov): {GIVE_VIDEO} without it")
    if samples * max(1, edits) > MAX_INDEX_ENTRIES:
        raise MediaOverBound(
            f"video of {len(mp4):,} bytes states {samples:,} samples and {edits:,} edits: give a shorter one, at most "
            f"{MAX_INDEX_ENTRIES:,} samples times edits (MAX_INDEX_ENTRIES)"
        )


def _deadline() -> float:
    """Processor time of this thread at which reading ends, so that a busy machine reads whatever an idle one reads."""
    return time.thread_time() + MAX_VIDEO_SECONDS


@contextmanager
def _opened(data: bytes, deadline: float) -> Iterator[tuple[Any, Any, Callable[[], None]]]:
    """The container, its video stream, and a function to call from time to time: it raises when the time is over.

    Any exception inside becomes a MediaError: the file is untrusted, and FFmpeg raises errors of every kind.
    """
    try:  # elsewhere, transformers would refuse a checkpoint's code if this package is not installed
        import av
    except ImportError as error:
        raise ImportError("to read videos, install PyAV (package av)") from error

    def in_time() -> None:
        if time.thread_time() > deadline:
            raise MediaOverBound(
                f"video of {len(data):,} bytes takes over {MAX_VIDEO_SECONDS:g} processor seconds to decode "
                "(MAX_VIDEO_SECONDS): give a shorter or smaller one"
            )

    # A frame's own header may contradict the container's. Twice, since decoders pad frames to whole blocks.
    limits = {"max_pixels": str(2 * MAX_FRAME_PIXELS)}
    alone = {"protocol_whitelist": ""}  # it may open no other file and no address
    try:
        container_name = _container(data)
        if container_name == "mp4":
            _check_index(data)
        with av.open(io.BytesIO(data), format=container_name, options=limits, container_options=alone) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise MediaError(f"video of {len(data):,} bytes has no video stream that can be decoded: {GIVE_VIDEO}")
            stream = container.streams.video[0]
            # One thread: starting libav's pools takes ten times as long as a small video.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = limits
            yield container, stream, in_time
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(
            f"video of {len(data):,} bytes cannot be decoded: {GIVE_VIDEO} ({type(error).__name__}: {error})"
        ) from error


def _check_video_size(width: int, height: int, frames: int = 1) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise MediaOverBound(
            f"video has {width:,} x {height:,} pixels a frame: give at most {MAX_FRAME_PIXELS:,} (MAX_FRAME_PIXELS)"
        )
    if width * height * frames > MAX_VIDEO_PIXELS:
        raise MediaOverBound(
            f"video has {frames:,} frames of {width:,} x {height:,} pixels: give a shorter or smaller one, of at most "
            f"{MAX_VIDEO_PIXELS:,} pixels in all frames (MAX_VIDEO_PIXELS)"
        )


def video_header(data: bytes) -> VideoHeader:
    """What is known of a video without decoding it: from its header, its packets and its first frame.

    Raises:
        MediaError: it is not a video, or has no frame; MediaOverBound, if it exceeds a bound.
    """
    return _header(data, _deadline())


def _header(data: bytes, deadline: float) -> VideoHeader:
    first, frames = None, 0
    with _opened(data, deadline) as (container, stream, in_time):
        codec = stream.codec_context
        _check_video_size(codec.width, codec.height, stream.frames)
        for packet in container.demux(stream):
            in_time()
            if first is None:
                first = next(iter(packet.decode()), None)
            # Not shown: the last packet, which is empty, those after an edit list's end, and frames of VP8 that others
            # are predicted from.
            shown = packet.size and not packet.is_discard and not (codec.name == "vp8" and not bytes(packet)[0] & 0x10)
            frames += bool(shown)
        if first is None or not frames:
            raise MediaError(f"video of {len(data):,} bytes holds no frame: {GIVE_VIDEO}")
        _check_video_size(first.width, first.height, frames)
        fps = max(0.0, float(stream.average_rate or 0))
        turns = first.rotation // 90 % 4 if first.rotation % 90 == 0 else 0
        return VideoHeader(first.width, first.height, turns, fps, frames)


def read_video(data: bytes, sample_fps: float, max_frames: int | None = None) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames of a video, evenly spaced over all its frames, turned upright.

    A frame's time is its number divided by the average rate, also where the rate varies. Only the taken frames are kept
    in memory. A frame of another size than the first is scaled to it.

    Args:
        data: an MP4 (or MOV), WebM, Matroska or AVI file.
        sample_fps: frames a second to take.
        max_frames: frames to take at most.

    Returns:
        uint8 [N, H, W, 3] and the N times in seconds.

    Raises:
        MediaError: it is not a video, or has no frame; MediaOverBound, if it exceeds a bound.
    """
    deadline = _deadline()
    header = _header(data, deadline)
    while True:
        frames, decoded = _decode(data, header, header.taken(sample_fps, max_frames), deadline)
        if decoded == header.frames:
            return frames, header.seconds(sample_fps, max_frames)
        # Its packets do not correspond to its frames one to one. Now the number is known, and frames are taken again.
        del frames
        header = header._replace(frames=decoded)


def _decode(data: bytes, header: VideoHeader, taken: list[int], deadline: float) -> tuple[NDArray[np.uint8], int]:
    """The taken frames, uint8 [N, H, W, 3], and how many frames there are in all."""
    width, height = header.upright
    kept = np.empty((len(taken), height, width, 3), np.uint8)
    decoded = pixels = place = 0
    with _opened(data, deadline) as (container, stream, in_time):
        for packet in container.demux(stream):
            in_time()
            for frame in packet.decode():
                _check_video_size(frame.width, frame.height)
                pixels += frame.width * frame.height
                if pixels > MAX_VIDEO_PIXELS:
                    raise MediaOverBound(
                        f"video of {len(data):,} bytes has over {MAX_VIDEO_PIXELS:,} pixels in its frames, contrary to "
                        "its header (MAX_VIDEO_PIXELS): give a shorter or smaller one"
                    )
                while place < len(taken) and taken[place] == decoded:
                    rgb = frame.reformat(header.width, header.height, "rgb24", threads=1).to_ndarray()
                    kept[place] = np.rot90(rgb, header.quarter_turns)
                    place += 1
                decoded += 1
    if not decoded:
        raise MediaError(f"video of {len(data):,} bytes holds no frame: {GIVE_VIDEO}")
    return kept, decoded
