"""Encoded images to pixels as people see them, within bounds; ``video_files.py`` does videos.

Every checkpoint carries this file, and moonflow reads its own images with it, so that a served picture has the pixels
of training. With ``media_structure.py`` and ``media_errors.py`` it stands alone: it imports nothing else of ours.

Whatever is known of an image before its pixels are decoded comes from its header.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .media_errors import MediaError, MediaOverBound
from .media_structure import Header, TooManyPieces, jpeg_scans, late_exif, transparent_as_decoded

# What browsers show. Pillow knows forty formats more: EPS starts Ghostscript, others are seldom read and seldom tested.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")

# The bounds are ours. A phone's largest usual photograph has 50 million pixels, which take 200 MB while it is decoded.
MAX_IMAGE_PIXELS = 50_000_000
# The longest side that JPEG allows. Shrinking a side takes memory by its length: 40,000,000 x 1 pixels took gigabytes.
MAX_IMAGE_SIDE = 65_535
# Pieces in which Pillow reads a header: five for a segment of a JPEG. A photograph with depth maps has a few hundred.
MAX_HEADER_PIECES = 5_000
# Passes over the pixels of a JPEG. Encoders write ten; one takes 75 bytes and, of 50 million pixels, 30 ms.
MAX_JPEG_SCANS = 50

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _unreadable_image(which: str, error: Exception) -> MediaError:
    allowed = f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"
    if isinstance(error, UnidentifiedImageError):  # its own message names an address in memory
        reason = "the file's start is of none of these formats, or broken"
    else:
        reason = f"{type(error).__name__}: {error}"
    return MediaError(f"{which} cannot be decoded: give a {allowed} file ({reason})")


def _check_image_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaOverBound(
            f"image has {width:,} x {height:,} pixels: give at most {MAX_IMAGE_PIXELS:,} of them (MAX_IMAGE_PIXELS)"
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise MediaOverBound(
            f"image has {width:,} x {height:,} pixels: give at most {MAX_IMAGE_SIDE:,} on a side (MAX_IMAGE_SIDE)"
        )


def _open_image(data: bytes) -> Image.Image:
    """The image, its header read and found within bounds; its pixels are not decoded yet."""
    header = Header(data, MAX_HEADER_PIECES)
    try:
        image = Image.open(header, formats=IMAGE_FORMATS)
    except TooManyPieces:
        raise MediaOverBound(
            f"image of {len(data):,} bytes has a header of over {MAX_HEADER_PIECES:,} pieces: save it without its "
            "metadata (MAX_HEADER_PIECES)"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own bound is higher than ours and comes before a size is known. It warns first; a program may have
        # turned warnings into errors.
        raise MediaOverBound(
            f"image of {len(data):,} bytes has over {MAX_IMAGE_PIXELS:,} pixels: give at most those (MAX_IMAGE_PIXELS)"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them raise
        raise _unreadable_image(f"image of {len(data):,} bytes", error) from error
    header.end()
    _check_image_size(*image.size)
    if image.format in ("JPEG", "MPO") and (scans := jpeg_scans(data)) > MAX_JPEG_SCANS:
        raise MediaOverBound(f"image is a JPEG of {scans:,} scans: give at most {MAX_JPEG_SCANS} (MAX_JPEG_SCANS)")
    if any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise MediaError("image is a run-length encoded BMP, which takes seconds to decode: give another format")
    if image.format == "PNG" and "exif" not in image.info and (exif := late_exif(data)):
        image.info["exif"] = exif
    if image.format == "PNG" and image.mode in ("RGB", "L") and "transparency" in image.info:
        image.info["transparency"] = transparent_as_decoded(data, image.info["transparency"])
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (as it is stored) if the image has none or it cannot be read."""
    try:
        # PNG's own getexif decodes the pixels, see above. The value may be of any type.
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return int(turn) if turn in UPRIGHT else 1
    except Exception:  # a broken EXIF block raises whatever its bytes make of Pillow's reader; viewers pass over it too
        return 1


def image_size(image: bytes | Image.Image) -> tuple[int, int]:
    """(width, height) in pixels of an image turned upright; of an encoded one from its header alone.

    Raises:
        MediaError: it is not an image in one of ``IMAGE_FORMATS``; MediaOverBound, if it exceeds a bound.
    """
    image = _open_image(image) if isinstance(image, bytes) else _loaded(image, f"image in mode {image.mode}")
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def read_image(image: bytes | Image.Image) -> Image.Image:
    """An image as people see it, in RGB.

    It is turned upright, transparent parts become white, 16-bit grey keeps its upper 8 bits. The first frame of
    an animation is taken. vLLM's loader gives the same pixels, except for kinds that it does not read as people see
    them: it clips 16-bit grey, and it shows the colour that an RGB image, or a grey one of 2 or 4 bits, declares
    transparent.

    Raises:
        MediaError: it cannot be decoded, or states no range for its pixels; MediaOverBound, if it exceeds a bound.
    """
    if isinstance(image, bytes):
        which, image = f"image of {len(image):,} bytes", _open_image(image)
    else:
        which = f"image in mode {image.mode}"
    _loaded(image, which)
    try:
        turn = UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return rgb if turn is None else rgb.transpose(turn)
    except MediaError:
        raise
    except Exception as error:
        raise _unreadable_image(which, error) from error


def _loaded(image: Image.Image, which: str) -> Image.Image:
    """The same image with its pixels decoded; only then has Pillow read what may follow them in the file."""
    _check_image_size(*image.size)
    try:
        image.load()
    except Exception as error:  # RuntimeError for planes of an AVIF, struct.error, MemoryError: each reader has its own
        raise _unreadable_image(which, error) from error
    return image


def _rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if transparent is not None:
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise MediaError(
            f"image has 32-bit pixels (mode {image.mode}) and does not say which value is white: give 8 or 16 bits"
        )
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or transparent is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
