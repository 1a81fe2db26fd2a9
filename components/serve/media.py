"""A caller's images and videos, read from data URLs and checked against the bounds by their headers alone."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from components.serve.errors import bad_request
from components.serve.limits import (
    MAX_DECODED_BYTES,
    MAX_IMAGE_PIXELS_TOGETHER,
    MAX_IMAGES,
    MAX_PATCHES,
    MAX_VIDEO_PIXELS_TOGETHER,
    MAX_VIDEOS,
)
from model.boundary.errors import MoonflowError
from model.codec.image import Grid, ImageConfig, MediaTooLarge, image_grid, image_size
from model.codec.video import video_grids, video_header

KINDS = {"image_url": "image", "video_url": "video"}
_HEAD = 200  # characters in which a data URL's ;base64, must stand


class Media:
    """The images and videos of one request, not decoded except for a video's first frame.

    Attributes:
        files: contents by the names that the turns give them.
        tokens: media pads that they need at least; a video also has timestamps.
        patches: of all of them, as the model sees them.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._count = dict.fromkeys(KINDS.values(), 0)
        self._pixels = dict.fromkeys(KINDS.values(), 0)
        self.files: dict[str, bytes] = {}
        self.tokens = 0
        self.patches = 0

    def add(self, key: str, source: Any, where: str) -> dict[str, Any]:
        """The turn's part for a content part of type ``key`` ("image_url" or "video_url").

        Raises:
            ApiError: it is not a data URL of an image or video, there are too many, or it is too large.
        """
        kind = KINDS[key]
        most = MAX_IMAGES if kind == "image" else MAX_VIDEOS
        if self._count[kind] == most:
            raise bad_request(f"there are more than {most} {kind}s; send at most {most}", where, "too_many_media")
        self._count[kind] += 1
        data = _content(key, source.get("url", "") if isinstance(source, dict) else source, where)
        try:
            pixels, taken, grids = self._image(data) if kind == "image" else self._video(data)
        except MediaTooLarge as error:
            raise bad_request(str(error), where, f"{kind}_too_large") from error
        except MoonflowError as error:
            raise bad_request(str(error), where, f"invalid_{kind}") from error
        if 3 * taken > MAX_DECODED_BYTES:
            told = f"the {kind} takes {3 * taken:,} bytes when it is decoded; send one of at most {MAX_DECODED_BYTES:,}"
            raise bad_request(told, where, f"{kind}_too_large")
        self._pixels[kind] += pixels
        most = MAX_IMAGE_PIXELS_TOGETHER if kind == "image" else MAX_VIDEO_PIXELS_TOGETHER
        if self._pixels[kind] > most:
            told = f"the {kind}s up to here have {self._pixels[kind]:,} pixels to decode; send at most {most:,}"
            raise bad_request(told, where, f"{kind}_too_large")
        self.tokens += sum(h * w for _, h, w in grids) // self._config.merge_kernel_size**2
        self.patches += sum(t * h * w for t, h, w in grids)
        if self.patches > MAX_PATCHES:
            told = f"the images and videos up to here have {self.patches:,} patches; send at most {MAX_PATCHES:,}"
            raise bad_request(f"{told} (patches of {self._config.patch_size} pixels)", where, f"{kind}_too_large")
        name = str(len(self.files))
        self.files[name] = data
        return {"type": kind, "media": name}

    def _image(self, data: bytes) -> tuple[int, int, list[Grid]]:
        """Pixels that are decoded, and those that lie in memory at once; grids."""
        width, height = image_size(data)
        return width * height, width * height, [image_grid(data, self._config)]

    def _video(self, data: bytes) -> tuple[int, int, list[Grid]]:
        header = video_header(data)
        grids, seconds = video_grids(data, self._config)
        return header.width * header.height * header.frames, header.width * header.height * len(seconds), grids


def _content(key: str, url: Any, where: str) -> bytes:
    # Fetching addresses that a caller chooses would let him reach our network.
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:_HEAD]:
        raise bad_request(f"{key} must be a data URL: data:image/png;base64,...", where)
    try:
        return base64.b64decode(url.split(";base64,", 1)[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{key} is not valid base64: {error}", where) from error
