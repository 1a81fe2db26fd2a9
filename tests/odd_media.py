"""Images and videos that are easily read otherwise than people see them, with the pixels that are right."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

TURNED = {  # EXIF orientation -> what is seen of stored pixels [H, W, 3]
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def blank_png(width: int, height: int) -> bytes:
    """A black PNG with one bit a pixel: a few kilobytes, whatever its size."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + rows.flush()
    return png(width, height, 1, 0, packed)


def png(
    width: int, height: int, depth: int, colour: int, packed: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG from its header's fields, its compressed rows, and chunks before and after them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: NDArray[np.uint16], colour: int, transparent: bytes = b"") -> bytes:
    """uint16 [H, W, channels] as PNG with 16 bits a channel."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    before = chunk(b"tRNS", transparent) if transparent else b""
    return png(values.shape[1], values.shape[0], 16, colour, zlib.compress(rows), before)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def on_white(colour: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    """Colour [H, W, 3] over white, alpha [H, W] in 0..255."""
    share = alpha[..., None] / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def as_rgb(grey: NDArray[Any]) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


@cache
def odd_images() -> dict[str, tuple[bytes, Pixels]]:
    """By name: a file, and uint8 [H, W, 3] as people see it."""
    stored, grey, alpha = noise(20, 36, 3), noise(20, 36), noise(20, 36, seed=1)
    wide = np.random.default_rng(2).integers(0, 65536, (20, 36, 3), dtype=np.uint16)
    top = (wide >> 8).astype(np.uint8)
    made = {f"exif {n}": (file(Image.fromarray(stored), exif=exif(n)), turn(stored)) for n, turn in TURNED.items()}
    raw = zlib.compress(b"".join(b"\0" + row.tobytes() for row in stored))
    late = chunk(b"tEXt", b"a\0b") + chunk(b"eXIf", exif(6).tobytes()[6:])
    made["exif after a PNG's pixels"] = png(36, 20, 8, 2, raw, after=late), TURNED[6](stored)
    made["exif that cannot be read"] = file(Image.fromarray(stored), exif=b"Exif\0\0odd"), stored
    for kind in ("JPEG", "WEBP", "AVIF"):
        plain = np.asarray(Image.open(io.BytesIO(file(Image.fromarray(stored), kind))).convert("RGB"))
        made[f"exif in {kind}"] = file(Image.fromarray(stored), kind, exif=exif(8)), TURNED[8](plain)
    made["rgba"] = file(Image.fromarray(np.dstack([stored, alpha]))), on_white(stored, alpha)
    turned = TURNED[5](on_white(stored, alpha))
    made["rgba and exif"] = file(Image.fromarray(np.dstack([stored, alpha])), exif=exif(5)), turned
    lossless = file(Image.fromarray(np.dstack([stored, alpha])), "WEBP", lossless=True, exact=True)
    made["rgba in WEBP"] = lossless, on_white(stored, alpha)
    made["la"] = file(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])), on_white(as_rgb(grey), alpha)
    palette, index = noise(256, 3, seed=3), Image.fromarray(grey, "P")
    index.putpalette(palette.tobytes())
    some = noise(256, seed=4)
    made["palette"] = file(index), palette[grey]
    made["palette with alpha"] = file(index, transparency=some.tobytes()), on_white(palette[grey], some[grey])
    made["palette with one transparent"] = (
        file(index, transparency=7),
        np.where((grey == 7)[..., None], 255, palette[grey]).astype(np.uint8),
    )
    few = Image.fromarray(grey % 4, "P")
    few.putpalette(palette[:4].tobytes())
    seen = np.where((grey % 4 == 2)[..., None], 255, palette[grey % 4]).astype(np.uint8)
    made["GIF with one transparent"] = file(few, "GIF", transparency=2), seen
    made["grey with one transparent"] = (
        file(Image.fromarray(grey), transparency=9),
        as_rgb(np.where(grey == 9, 255, grey)),
    )
    colour = tuple(int(value) for value in stored[3, 4])
    hit = (stored == stored[3, 4]).all(axis=2)
    seen = np.where(hit[..., None], 255, stored).astype(np.uint8)
    made["RGB with one transparent"] = file(Image.fromarray(stored), transparency=colour), seen
    made["16-bit grey"] = png16(wide[..., :1], 0), as_rgb(top[..., 0])
    one = struct.pack(">H", wide[3, 4, 0])
    seen = as_rgb(np.where(wide[..., 0] == wide[3, 4, 0], 255, top[..., 0]))
    made["16-bit grey with one transparent"] = png16(wide[..., :1], 0, one), seen
    made["16-bit grey with alpha"] = png16(wide[..., :2], 4), on_white(as_rgb(top[..., 0]), top[..., 1])
    made["16-bit RGB"] = png16(wide, 2), top
    seen = np.where((top == top[3, 4]).all(axis=2)[..., None], 255, top).astype(np.uint8)
    made["16-bit RGB with one transparent"] = png16(wide, 2, struct.pack(">HHH", *wide[3, 4])), seen
    few_greys = zlib.compress(b"".join(b"\0" + (row[::2] << 4 | row[1::2]).tobytes() for row in grey % 16))
    four_bits = png(36, 20, 4, 0, few_greys, chunk(b"tRNS", struct.pack(">H", 5)))
    seen = as_rgb(np.where(grey % 16 == 5, 255, grey % 16 * 17))
    made["4-bit grey with one transparent"] = four_bits, seen
    plain = np.asarray(Image.open(io.BytesIO(file(Image.fromarray(stored), "JPEG"))))
    several = file(Image.fromarray(stored), "MPO", save_all=True, append_images=[Image.fromarray(stored[::-1])])
    made["a telephone's JPEG with a second picture"] = several, plain
    bits = grey > 127
    made["one bit"] = file(Image.fromarray(bits)), as_rgb(bits * 255)
    made["BMP"] = file(Image.fromarray(stored), "BMP"), stored
    frames = [Image.fromarray(each) for each in (stored, stored[::-1])]
    made["APNG"] = file(frames[0], save_all=True, append_images=frames[1:]), stored
    webp = file(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    made["animated WEBP"] = webp, stored
    return made


def video(
    frames: Iterable[Pixels],
    kind: str = "mp4",
    codec: str = "mpeg4",
    fps: int = 2,
    turned: int = 0,
    **options: str,
) -> bytes:
    """Frames uint8 [H, W, 3], H and W even, as a file; a player turns them counterclockwise by ``turned`` degrees."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options) as container:
        stream: Any = None
        for pixels in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.height, stream.width, stream.pix_fmt, stream.thread_count = *pixels.shape[:2], "yuv420p", 1
                if turned:
                    stream.set_display_rotation(turned)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """All frames of a video as they are stored, uint8 [N, H, W, 3]."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
