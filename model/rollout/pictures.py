"""The images of a request as pictures that a server can read: put together from their patches (source: ours).

The picture is a lossless PNG; the released image processor cuts it into the same patches again.
"""

from __future__ import annotations

import base64

import numpy as np

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig, encode_png
from model.rollout.protocol import Request


def pictures(request: Request, config: ImageConfig, engine: str) -> list[str]:
    """PNG data URLs, in the order of the grids; none if the request shows nothing.

    Args:
        config: with which the images were prepared.
        engine: what the error calls the one that asks.

    Raises:
        MoonflowError: the request shows a video.
    """
    if request.pixel_values is None:
        return []
    if any(frames != 1 for frames, _, _ in request.grid_thws):
        raise MoonflowError(f"{engine} takes images only for this model; use the embedded engine for videos")
    values = request.pixel_values.float().cpu().numpy().transpose(0, 2, 3, 1)
    values = values * np.array(config.image_std, np.float32) + np.array(config.image_mean, np.float32)
    pixels = (values * 255).round().clip(0, 255).astype(np.uint8)
    images, start = [], 0
    for _, h, w in request.grid_thws:
        patches = pixels[start : start + h * w].reshape(h, w, config.patch_size, config.patch_size, 3)
        start += h * w
        picture = patches.transpose(0, 2, 1, 3, 4).reshape(h * config.patch_size, w * config.patch_size, 3)
        images.append("data:image/png;base64," + base64.b64encode(encode_png(picture)).decode())
    return images
