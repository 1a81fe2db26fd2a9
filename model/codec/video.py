"""Videos to chunks of patches as in the released processor; ``model.codec.image`` does images.

Shapes: P patches of all frames, C channels (3), H and W pixels, N frames; h and w count patches of one frame.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from model.boundary.errors import MoonflowError
from model.codec.image import Grid, ImageConfig, padded, padded_grid, patches, read_rgb, translated_errors
from model.codec.remote import video_files
from model.codec.remote.video_files import VideoHeader


def video_header(video: bytes) -> VideoHeader:
    """Size, rate and number of a video's frames; only the first frame is decoded.

    Raises:
        MoonflowError: it is not a video, or it has no frame; MediaTooLarge, if it exceeds a bound.
    """
    with translated_errors():
        return video_files.video_header(video)


def video_grids(video: bytes, config: ImageConfig) -> tuple[list[Grid], list[float]]:
    """The grids that ``encode_video`` gives and the taken frames' times in seconds, without decoding the video.

    If a stream's packets do not correspond to its frames one to one, decoding may give a few frames more or fewer.

    Raises:
        MoonflowError: it is not a video, or it has no frame; MediaTooLarge, if it exceeds a bound.
    """
    with translated_errors():
        header = video_files.video_header(video)
        seconds = header.seconds(config.sample_fps, config.max_num_frames_each_video)
    width, height = header.upright
    return frame_grids((len(seconds), height, width, 3), config), seconds


def frame_grids(shape: tuple[int, ...], config: ImageConfig) -> list[Grid]:
    """The grids that ``encode_video`` gives for frames of ``shape`` [N, H, W, 3]."""
    count, height, width, _ = shape
    step = config.temporal_merge_kernel_size
    sizes = [min(step, count - start) for start in range(0, count, step)]
    return [(size, *padded_grid(width, height, _frame_limit(size, config), config)) for size in sizes]


def _frame_limit(frames: int, config: ImageConfig) -> int:
    """The most patches of one frame, in a chunk of this many frames."""
    if config.in_patch_limit_video is None:
        return config.in_patch_limit_each_frame
    return min(config.in_patch_limit_each_frame, round(config.in_patch_limit_video / frames))


def decode_video(data: bytes, config: ImageConfig) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames of a video, sampled evenly at ``sample_fps``, upright, by ``model.codec.remote.video_files.read_video``.

    Returns:
        uint8 [N, H, W, 3] and the N times in seconds.

    Raises:
        MoonflowError: the bytes are not a video, or have no frame; MediaTooLarge, if it exceeds a bound.
    """
    with translated_errors():
        return video_files.read_video(data, config.sample_fps, config.max_num_frames_each_video)


def encode_video(video: bytes | NDArray[np.uint8], config: ImageConfig) -> tuple[NDArray[np.float32], list[Grid]]:
    """A video as chunks of at most ``temporal_merge_kernel_size`` frames.

    Args:
        video: encoded bytes (MP4, WebM, Matroska, AVI), sampled at ``sample_fps``, or frames uint8 [N, H, W, 3] that
            are all taken.
        config: limits and normalisation.

    Returns:
        pixel_values float32 [P, 3, patch, patch], frame after frame, and one grid (t, h, w) per chunk.

    Raises:
        MoonflowError: the bytes are not a video, or the array has another shape or type; MediaTooLarge, if the video
            exceeds a bound of ``model.codec.remote.video_files``.
    """
    frames = decode_video(video, config)[0] if isinstance(video, bytes) else video
    if frames.ndim != 4 or not len(frames):
        raise MoonflowError(f"video array is {list(frames.shape)}: give uint8 [frames, height, width, 3]")
    step, values, grids = config.temporal_merge_kernel_size, [], []
    for start in range(0, len(frames), step):
        chunk = frames[start : start + step]
        limit = _frame_limit(len(chunk), config)
        pixels_NHWC = np.stack([padded(read_rgb(frame), limit, config) for frame in chunk])
        height, width = (length // config.patch_size for length in pixels_NHWC.shape[1:3])
        values.append(patches(pixels_NHWC, config))
        grids.append((len(chunk), height, width))
    return np.concatenate(values), grids


def chunk_timestamps(seconds: list[float], config: ImageConfig) -> list[str]:
    """Where each chunk of a video starts, as the prompt writes it: milliseconds are cut off, not rounded (source:
    released processor).

    Args:
        seconds: the frames' times from ``decode_video``.
        config: gives the chunk length.

    Returns:
        One ``HH:MM:SS.mmm`` per chunk.
    """
    stamps = []
    for time in seconds[:: config.temporal_merge_kernel_size]:
        whole, milliseconds = int(time), int(time % 1 * 1000)
        stamps.append(f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}")
    return stamps


def encode_mp4(frames: NDArray[np.uint8], fps: int = 2) -> bytes:
    """uint8 [N, H, W, 3], H and W even, as MPEG-4 part 2: fast to write, and every FFmpeg build reads it (ours)."""
    import av  # here, so that training on text and images does not need it

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "3", "flags": "+qscale"})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], "yuv420p", 1
        for pixels_HWC in frames:
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
