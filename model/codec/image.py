"""Images to patches as in the released image processor, in numpy and PIL; ``model.codec.video`` does videos.

Shapes: P patches of all frames, C colour channels (3), H and W pixels, N frames; h and w count patches of one frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from model.boundary import config_bounds as bounds
from model.boundary.errors import MoonflowError
from model.codec.remote import image_files, media_errors

Grid = tuple[int, int, int]  # (t, h, w): frames, patch rows, patch columns


class MediaTooLarge(MoonflowError):
    """An image or video that exceeds a bound of ``model.codec.remote``; the message names the bound."""


class ImageConfig(BaseModel):
    """``media_proc_cfg`` of the released preprocessor_config.json, with its values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    patch_size: bounds.PatchSize = Field(default=14, description="pixels on a patch's side")
    image_mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="subtracted, in [0, 1] units")
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 0.5, 0.5), description="divided by, in [0, 1] units"
    )
    merge_kernel_size: bounds.MergedPatches = Field(
        default=2, description="patches on the side of one language-model token"
    )
    in_patch_limit: PositiveInt = Field(default=16384, description="patches of one image; a larger one is shrunk")
    patch_limit_on_one_side: PositiveInt = Field(default=512, description="patches on the longer side")
    in_patch_limit_each_frame: PositiveInt = Field(default=4096, description="patches of one video frame")
    in_patch_limit_video: PositiveInt | None = Field(default=None, description="patches of one chunk; null: no limit")
    sample_fps: PositiveFloat = Field(default=2.0, description="frames a second taken from a video")
    max_num_frames_each_video: PositiveInt | None = Field(
        default=None, description="frames taken from a video; null: no limit"
    )
    temporal_merge_kernel_size: bounds.Frames = Field(default=4, description="frames pooled into one chunk")
    fixed_output_tokens: None = Field(default=None, description="always null: token counts follow the image's size")
    timestamp_mode: Literal["hh:mm:ss.fff"] = Field(default="hh:mm:ss.fff", description="a chunk's start")


def as_image_config(values: Any) -> ImageConfig:
    """The config in a file's values. Raises ValueError, in one line that names the first wrong field."""
    try:
        return ImageConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))) from None


def scaled_size(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """The (width, height) in pixels to which an image is shrunk; it is never enlarged (source: released processor)."""
    patch = config.patch_size
    area = math.sqrt(patch_limit / (max(1, width // patch) * max(1, height // patch)))
    side = config.patch_limit_on_one_side * patch
    scale = min(1.0, area, side / width, side / height)
    return min(side, max(1, int(width * scale))), min(side, max(1, int(height * scale)))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Inside, errors of ``model.codec.remote`` become MediaTooLarge and MoonflowError."""
    try:
        yield
    except media_errors.MediaOverBound as error:
        raise MediaTooLarge(str(error)) from error
    except media_errors.MediaError as error:
        raise MoonflowError(str(error)) from error


def read_rgb(image: bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
    """The image as people see it, in RGB: upright, transparent parts white, 16 bits scaled to 8. Raises what
    ``encode_image`` raises."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise MoonflowError(f"image array is {image.dtype} {list(image.shape)}: give uint8 [height, width, 3]")
        return Image.fromarray(image)
    with translated_errors():
        return image_files.read_image(image)


def read_pixels(image: bytes) -> NDArray[np.uint8]:
    """The pixels that ``read_rgb`` shows: uint8 [H, W] of a file whose format stores grey, with or without
    transparency; [H, W, 3] of any other file, also if all its colours are grey. Raises what ``encode_image`` raises."""
    pixels_HWC = np.asarray(read_rgb(image))
    with Image.open(io.BytesIO(image), formats=image_files.IMAGE_FORMATS) as header:  # found within bounds just now
        # Pillow reads 16 bits of grey with transparency as RGBA; a PNG's own header says what it stores.
        grey = image[25] in (0, 4) if header.format == "PNG" else Image.getmodebase(header.mode) == "L"
    return pixels_HWC[..., 0] if grey else pixels_HWC


def image_size(image: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an encoded image turned upright, from its header alone.

    Raises:
        MoonflowError: the format is not one that we read; MediaTooLarge, if the image exceeds a bound.
    """
    with translated_errors():
        return image_files.image_size(image)


def padded(image: Image.Image, patch_limit: int, config: ImageConfig) -> NDArray[np.uint8]:
    """The image as uint8 [H, W, 3]: shrunk if it exceeds a limit, then zero-padded at the right and the bottom so that
    merged squares of patches are whole."""
    size = scaled_size(*image.size, patch_limit, config)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(image)
    factor = config.patch_size * config.merge_kernel_size
    pad_h, pad_w = (-length % factor for length in pixels_HWC.shape[:2])
    # Most images need no padding, and np.pad takes longer than their decoding.
    return np.pad(pixels_HWC, ((0, pad_h), (0, pad_w), (0, 0))) if pad_h or pad_w else pixels_HWC


def patches(pixels_NHWC: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.float32]:
    """Patches [P, 3, patch, patch] of frames, in row order. Padding is normalised as pixels are, to -mean/std."""
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
        image: encoded bytes (PNG, JPEG, WEBP, GIF, BMP, AVIF), a PIL image, or uint8 [H, W, 3].
        config: limits and normalisation.

    Returns:
        pixel_values float32 [P, 3, patch, patch] with patches in row order, and the grid (1, h, w).

    Raises:
        MoonflowError: the bytes are not an image, or the array has another shape or type; MediaTooLarge, if the image
            exceeds a bound of ``model.codec.remote.image_files``.
    """
    pixels_HWC = padded(read_rgb(image), config.in_patch_limit, config)
    height, width = pixels_HWC.shape[:2]
    return patches(pixels_HWC[None], config), (1, height // config.patch_size, width // config.patch_size)


def image_grid(image: bytes, config: ImageConfig) -> Grid:
    """The grid that ``encode_image`` gives, from the file's header alone. Raises what ``image_size`` raises."""
    return (1, *padded_grid(*image_size(image), config.in_patch_limit, config))


def padded_grid(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """(h, w) in patches of an image of width x height pixels, after it is shrunk and padded."""
    merged = config.patch_size * config.merge_kernel_size
    width, height = scaled_size(width, height, patch_limit, config)
    return -(-height // merged) * config.merge_kernel_size, -(-width // merged) * config.merge_kernel_size


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG; compressed lightly, since shards are written once per run (ours)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
