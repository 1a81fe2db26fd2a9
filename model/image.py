"""Images -> patches, as the released image processor does it, in numpy and PIL; `model.video` does it for videos.

Legend: P patches of all frames, C colour channels (3), H and W pixels, N frames; h and w count patches of one frame.
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

from model import config_bounds as bounds
from model.errors import MoonflowError
from model.remote import image_files, media_errors

Grid = tuple[int, int, int]  # (t, h, w): frames, patch rows, patch columns


class MediaTooLarge(MoonflowError):
    """An image or video over a bound of `model.remote`; the message names the bound."""


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
    """The config that a file states; ValueError, one line with the first wrong field, if it states none."""
    try:
        return ImageConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))) from None


def scaled_size(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """The (width, height) in pixels an image is shrunk to; never enlarged (source: released processor)."""
    patch = config.patch_size
    area = math.sqrt(patch_limit / (max(1, width // patch) * max(1, height // patch)))
    side = config.patch_limit_on_one_side * patch
    scale = min(1.0, area, side / width, side / height)
    return min(side, max(1, int(width * scale))), min(side, max(1, int(height * scale)))


@contextmanager
def told() -> Iterator[None]:
    """What the reader of files says as the error that our callers expect."""
    try:
        yield
    except media_errors.MediaTooLarge as error:
        raise MediaTooLarge(str(error)) from error
    except media_errors.MediaError as error:
        raise MoonflowError(str(error)) from error


def read_rgb(image: bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
    """The image as people see it, in RGB: upright, transparent parts white, 16 bits scaled to 8. Raises as
    `encode_image`."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise MoonflowError(f"image array is {image.dtype} {list(image.shape)}: give uint8 [height, width, 3]")
        return Image.fromarray(image)
    with told():
        return image_files.read_image(image)


def image_size(image: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an encoded image turned upright, from its header alone.

    Raises:
        MoonflowError: the header is of no image that we read; MediaTooLarge, if the image is over a bound.
    """
    with told():
        return image_files.image_size(image)


def padded(image: Image.Image, patch_limit: int, config: ImageConfig) -> NDArray[np.uint8]:
    """Shrunk if over the limits, then zero-padded right and bottom to whole merged patches: uint8 [H, W, 3]."""
    size = scaled_size(*image.size, patch_limit, config)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(image)
    factor = config.patch_size * config.merge_kernel_size
    pad_h, pad_w = (-length % factor for length in pixels_HWC.shape[:2])
    return np.pad(pixels_HWC, ((0, pad_h), (0, pad_w), (0, 0)))


def patches(pixels_NHWC: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.float32]:
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
        image: encoded bytes (PNG, JPEG, WEBP, GIF, BMP, AVIF), a PIL image, or uint8 [H, W, 3].
        config: limits and normalisation.

    Returns:
        pixel_values float32 [P, 3, patch, patch] with patches in row order, and the grid (1, h, w).

    Raises:
        MoonflowError: the bytes are no image, or the array has another shape or type; MediaTooLarge, if the image is
            over a bound of `model.remote.image_files`.
    """
    pixels_HWC = padded(read_rgb(image), config.in_patch_limit, config)
    height, width = pixels_HWC.shape[:2]
    return patches(pixels_HWC[None], config), (1, height // config.patch_size, width // config.patch_size)


def image_grid(image: bytes, config: ImageConfig) -> Grid:
    """The grid that ``encode_image`` gives, from the file's header alone. Raises as `image_size`."""
    return (1, *padded_grid(*image_size(image), config.in_patch_limit, config))


def padded_grid(width: int, height: int, patch_limit: int, config: ImageConfig) -> tuple[int, int]:
    """(h, w) in patches of a picture of these pixels, shrunk and padded."""
    merged = config.patch_size * config.merge_kernel_size
    width, height = scaled_size(width, height, patch_limit, config)
    return -(-height // merged) * config.merge_kernel_size, -(-width // merged) * config.merge_kernel_size


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG; compressed lightly, since shards are written once per run (ours)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
