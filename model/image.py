"""Pixels -> patches, as the released image processor does it, in numpy and PIL.

Legend: P patches of all frames, C colour channels (3), H and W pixels, N frames; h and w count patches of one frame.
"""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.errors import MoonflowError

Grid = tuple[int, int, int]  # (t, h, w): frames, patch rows, patch columns


class ImageConfig(BaseModel):
    """``media_proc_cfg`` of the released preprocessor_config.json, with its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_size: int = Field(default=14, description="pixels on a patch's side")
    image_mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="subtracted, in [0, 1] units")
    image_std: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="divided by, in [0, 1] units")
    merge_kernel_size: int = Field(default=2, description="patches on the side of one language-model token")
    in_patch_limit: int = Field(default=16384, description="patches of one image; a larger one is shrunk")
    patch_limit_on_one_side: int = Field(default=512, description="patches on the longer side")
    in_patch_limit_each_frame: int = Field(default=4096, description="patches of one video frame")
    in_patch_limit_video: int | None = Field(default=None, gt=0, description="patches of one chunk; null: no limit")
    sample_fps: float = Field(default=2.0, description="frames a second taken from a video")
    max_num_frames_each_video: int | None = Field(default=None, description="frames taken from a video; null: no limit")
    temporal_merge_kernel_size: int = Field(default=4, description="frames pooled into one chunk")
    fixed_output_tokens: None = Field(default=None, description="always null: token counts follow the image's size")
    timestamp_mode: Literal["hh:mm:ss.fff"] = Field(default="hh:mm:ss.fff", description="a chunk's start")


def scaled_size(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """The (width, height) in pixels an image is shrunk to; never enlarged (source: released processor)."""
    patch = config.patch_size
    area = math.sqrt(patch_limit / (max(1, width // patch) * max(1, height // patch)))
    side = config.patch_limit_on_one_side * patch
    scale = min(1.0, area, side / width, side / height)
    return min(side, max(1, int(width * scale))), min(side, max(1, int(height * scale)))


def _open(image: bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, bytes):
        try:
            return Image.open(io.BytesIO(image)).convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise MoonflowError(f"image of {len(image)} bytes cannot be decoded: give a PNG or JPEG") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise MoonflowError(f"image array is {image.dtype} {list(image.shape)}: give uint8 [height, width, 3]")
        return Image.fromarray(image)
    return image.convert("RGB")


def _padded(image: Image.Image, patch_limit: int, config: ImageConfig) -> NDArray[np.uint8]:
    """Shrunk if over the limits, then zero-padded right and bottom to whole merged patches: uint8 [H, W, 3]."""
    size = scaled_size(*image.size, patch_limit, config)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(image)
    factor = config.patch_size * config.merge_kernel_size
    pad_h, pad_w = (-length % factor for length in pixels_HWC.shape[:2])
    return np.pad(pixels_HWC, ((0, pad_h), (0, pad_w), (0, 0)))


def _patches(pixels_NHWC: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.float32]:
    """Normalises after the padding (which so becomes -mean/std) and cuts patches frame by frame in row order."""
    mean, std = (np.array(values, np.float32) for values in (config.image_mean, config.image_std))
    values = (pixels_NHWC.astype(np.float32) / np.float32(255) - mean) / std
    n, height, width, _ = values.shape
    p = config.patch_size
    values = values.reshape(n, height // p, p, width // p, p, 3).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(values.reshape(-1, 3, p, p))


def encode_image(
    image: bytes | Image.Image | NDArray[np.uint8], config: ImageConfig
) -> tuple[NDArray[np.float32], Grid]:
    """One image as patches.

    Args:
        image: encoded bytes (PNG, JPEG), a PIL image, or uint8 [H, W, 3].
        config: limits and normalisation.

    Returns:
        pixel_values float32 [P, 3, patch, patch] with patches in row order, and the grid (1, h, w).

    Raises:
        MoonflowError: the bytes are no image, or the array has another shape or type.
    """
    pixels_HWC = _padded(_open(image), config.in_patch_limit, config)
    height, width = pixels_HWC.shape[:2]
    return _patches(pixels_HWC[None], config), (1, height // config.patch_size, width // config.patch_size)


def image_grid(image: bytes, config: ImageConfig) -> Grid:
    """The grid that ``encode_image`` gives, from the file's header alone. MoonflowError: the bytes are no image."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MoonflowError(f"image of {len(image)} bytes cannot be decoded: give a PNG or JPEG") from error
    return (1, *_padded_grid(width, height, config.in_patch_limit, config))


def video_grids(shape: tuple[int, ...], config: ImageConfig) -> list[Grid]:
    """The grids that ``encode_video`` gives for frames of ``shape`` [N, H, W, 3]."""
    count, height, width, _ = shape
    step = config.temporal_merge_kernel_size
    sizes = [min(step, count - start) for start in range(0, count, step)]
    return [(size, *_padded_grid(width, height, _frame_limit(size, config), config)) for size in sizes]


def _padded_grid(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """(h, w) in patches of a picture of these pixels, shrunk and padded."""
    merged = config.patch_size * config.merge_kernel_size
    width, height = scaled_size(width, height, patch_limit, config)
    return -(-height // merged) * config.merge_kernel_size, -(-width // merged) * config.merge_kernel_size


def _frame_limit(frames: int, config: ImageConfig) -> int:
    """Patches that one frame of a chunk of so many frames may have."""
    if config.in_patch_limit_video is None:
        return config.in_patch_limit_each_frame
    return min(config.in_patch_limit_each_frame, round(config.in_patch_limit_video / frames))


def decode_video(data: bytes, config: ImageConfig) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames of a video, sampled evenly at ``sample_fps``.

    Returns:
        uint8 [N, H, W, 3] and the N times in seconds.

    Raises:
        MoonflowError: the bytes are no video or hold no frame.
    """
    import av  # here, so that text and images can be trained on where it is not installed

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or config.sample_fps)
            # One thread: starting libav's pools takes ten times as long as a small video.
            stream.codec_context.thread_count = 1
            frames = [frame.reformat(format="rgb24", threads=1).to_ndarray() for frame in container.decode(stream)]
    except (av.FFmpegError, IndexError) as error:
        raise MoonflowError(f"video of {len(data)} bytes cannot be decoded: give an MP4") from error
    if not frames:
        raise MoonflowError(f"video of {len(data)} bytes holds no frame: give an MP4 with at least one")
    taken = max(1, round(len(frames) * min(config.sample_fps, fps) / fps))
    if config.max_num_frames_each_video is not None:
        taken = min(taken, config.max_num_frames_each_video)
    chosen = np.linspace(0, len(frames) - 1, taken).round().astype(int).tolist()
    return np.stack([frames[i] for i in chosen]), [i / fps for i in chosen]


def encode_video(video: bytes | NDArray[np.uint8], config: ImageConfig) -> tuple[NDArray[np.float32], list[Grid]]:
    """A video as chunks of at most ``temporal_merge_kernel_size`` frames.

    Args:
        video: encoded bytes (MP4), sampled at ``sample_fps``, or frames uint8 [N, H, W, 3] that are all taken.
        config: limits and normalisation.

    Returns:
        pixel_values float32 [P, 3, patch, patch], frame after frame, and one grid (t, h, w) per chunk.

    Raises:
        MoonflowError: the bytes are no video, or the array has another shape or type.
    """
    frames = decode_video(video, config)[0] if isinstance(video, bytes) else video
    if frames.ndim != 4 or not len(frames):
        raise MoonflowError(f"video array is {list(frames.shape)}: give uint8 [frames, height, width, 3]")
    step, values, grids = config.temporal_merge_kernel_size, [], []
    for start in range(0, len(frames), step):
        chunk = frames[start : start + step]
        limit = _frame_limit(len(chunk), config)
        pixels_NHWC = np.stack([_padded(_open(frame), limit, config) for frame in chunk])
        height, width = (length // config.patch_size for length in pixels_NHWC.shape[1:3])
        values.append(_patches(pixels_NHWC, config))
        grids.append((len(chunk), height, width))
    return np.concatenate(values), grids


def chunk_timestamps(seconds: list[float], config: ImageConfig) -> list[str]:
    """Where each chunk of a video starts, as the prompt writes it: milliseconds are cut off, not rounded (source:
    released processor).

    Args:
        seconds: the frames' times from `decode_video`.
        config: gives the chunk length.

    Returns:
        One ``HH:MM:SS.mmm`` per chunk.
    """
    stamps = []
    for time in seconds[:: config.temporal_merge_kernel_size]:
        whole, milliseconds = int(time), int(time % 1 * 1000)
        stamps.append(f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}")
    return stamps


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG; compressed lightly, since shards are written once per run (ours)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mp4(frames: NDArray[np.uint8], fps: int = 2) -> bytes:
    """uint8 [N, H, W, 3], H and W even, as MPEG-4 part 2: quick to write, and every FFmpeg build reads it (ours)."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "3", "flags": "+qscale"})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], "yuv420p", 1
        for pixels_HWC in frames:
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
