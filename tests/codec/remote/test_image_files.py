"""Image files against pixels that are written out by hand, and against what vLLM's loader does."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.codec.remote import image_files
from model.codec.remote.image_files import MAX_IMAGE_SIDE, image_size, read_image
from model.codec.remote.media_errors import MediaError, MediaOverBound
from model.codec.remote.media_structure import jpeg_scans
from tests.odd_media import blank_png, exif, file, noise, odd_images

ODD = odd_images()


@pytest.mark.parametrize("name", ODD)
def test_an_image_is_read_as_people_see_it(name: str) -> None:
    data, seen = ODD[name]
    got = read_image(data)
    assert got.mode == "RGB" and image_size(data) == got.size
    np.testing.assert_array_equal(np.asarray(got), seen)


# Pillow keeps that colour as it stands in the file, and an opened image does not say of how many bits it is.
OTHER_BITS = {"16-bit RGB with one transparent", "4-bit grey with one transparent"}


@pytest.mark.parametrize("name", sorted(ODD.keys() - OTHER_BITS))
def test_an_opened_image_is_read_as_its_file_is(name: str) -> None:
    data, seen = ODD[name]
    np.testing.assert_array_equal(np.asarray(read_image(Image.open(io.BytesIO(data)))), seen)
    assert image_size(Image.open(io.BytesIO(data))) == (seen.shape[1], seen.shape[0])


def as_vllm(data: bytes) -> Image.Image:
    """vLLM 0.32's ImageMediaIO, with its defaults, in its own order of steps."""
    image = Image.open(io.BytesIO(data))
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.split()[3])
        return white
    return image.convert("RGB")


CLIPPED = {"16-bit grey", "16-bit grey with one transparent"}  # by vLLM
SHOWN = {"RGB with one transparent", *OTHER_BITS}  # that colour, by vLLM


@pytest.mark.parametrize("name", sorted(ODD.keys() - CLIPPED - SHOWN))
def test_the_pixels_are_those_of_vllms_loader(name: str) -> None:
    data, _ = ODD[name]
    np.testing.assert_array_equal(np.asarray(read_image(data)), np.asarray(as_vllm(data)))


@pytest.mark.parametrize(("kind", "count", "value"), [(2, 2, b"6\0\0\0"), (3, 1, b"\x09\0\0\0"), (7, 1, b"\6\0\0\0")])
def test_an_orientation_of_another_type_turns_nothing(kind: int, count: int, value: bytes) -> None:
    """EXIF's types 2, 3 and 7: text, a 16-bit number (there is no ninth orientation), raw bytes."""
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value + bytes(4)
    data = file(Image.new("RGB", (8, 4)), exif=b"Exif\0\0II*\0\x08\0\0\0" + entry)
    assert image_size(data) == read_image(data).size == (8, 4)


def test_a_print_is_read_in_its_colours() -> None:
    inks = Image.fromarray(noise(16, 16, 4), "CMYK")
    data = file(inks, "JPEG")
    np.testing.assert_array_equal(np.asarray(read_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_white_are_refused(mode: str) -> None:
    with pytest.raises(MediaError, match=f"mode {mode}.*give 8 or 16 bits"):
        read_image(Image.new(mode, (4, 4), 300))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_image_is_refused_from_its_header_with_the_true_reason() -> None:
    sizes = {
        (7_100, 7_100): r"7,100 x 7,100 pixels: give at most 50,000,000 of them \(MAX_IMAGE_PIXELS\)",
        (40_000_000, 1): r"40,000,000 x 1 pixels: give at most 65,535 on a side \(MAX_IMAGE_SIDE\)",
        (10_000, 10_000): r"10,000 x 10,000 pixels: give at most 50,000,000",  # Pillow warns
        (20_000, 10_000): r"over 50,000,000 pixels.*MAX_IMAGE_PIXELS",  # and refuses
    }
    for (width, height), told in sizes.items():
        data = blank_png(width, height)
        assert len(data) < 30_000
        start = time.thread_time()
        with pytest.raises(MediaOverBound, match=told):
            image_size(data)
        with pytest.raises(MediaOverBound, match=told):
            read_image(data)
        assert time.thread_time() - start < 0.1


@pytest.mark.filterwarnings("error")
def test_pillows_own_warning_of_large_images_is_the_same_refusal() -> None:
    with pytest.raises(MediaOverBound, match="MAX_IMAGE_PIXELS"):
        image_size(blank_png(10_000, 10_000))


def test_the_longest_side_is_read_in_little_memory() -> None:
    data = blank_png(MAX_IMAGE_SIDE, 1)
    assert image_size(data) == (MAX_IMAGE_SIDE, 1) and read_image(data).size == (MAX_IMAGE_SIDE, 1)


def test_a_header_tells_the_size_without_a_decode() -> None:
    data = blank_png(7_000, 7_000)
    start = time.thread_time()
    for _ in range(15):
        assert image_size(data) == (7_000, 7_000)
    assert time.thread_time() - start < 0.5


BROKEN = {
    "no image": b"not an image",
    "nothing": b"",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "TIFF": file(Image.new("L", (8, 8)), "TIFF"),
    "ICO": file(Image.new("RGB", (16, 16)), "ICO"),
    **{f"half a {kind}": file(Image.fromarray(noise(20, 36, 3)), kind)[:-200] for kind in image_files.IMAGE_FORMATS},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_one_line(name: str) -> None:
    with pytest.raises(MediaError, match="cannot be decoded: give a PNG, JPEG, WEBP, GIF, BMP or AVIF file") as caught:
        read_image(BROKEN[name])
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


def test_an_avif_whose_planes_are_broken_is_told() -> None:
    whole = file(Image.fromarray(noise(20, 36, 3)), "AVIF")
    at = whole.index(b"mdat") + 4
    with pytest.raises(MediaError, match="cannot be decoded.*Error: "):
        read_image(whole[:at] + bytes(len(whole) - at))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken EXIF data
def test_no_broken_byte_raises_anything_else() -> None:
    """One byte after another is changed: what is raised is always the one error."""
    rng = np.random.default_rng(0)
    for kind in image_files.IMAGE_FORMATS:
        whole = file(Image.fromarray(noise(8, 8, 3)), kind, exif=exif(6)) if kind != "BMP" else BROKEN["half a BMP"]
        for place in rng.integers(0, len(whole), 150):
            changed = bytearray(whole)
            changed[place] ^= 1 << rng.integers(8)
            try:
                size = image_size(bytes(changed))
                assert read_image(bytes(changed)).size == size
            except MediaError:
                pass


def test_a_jpeg_of_many_scans_is_refused_before_they_are_decoded() -> None:
    """400 KB of empty scans took minutes."""
    plain = file(Image.new("L", (2_000, 2_000)), "JPEG", progressive=True, exif=exif(6))
    end, last = plain.rindex(b"\xff\xd9"), plain.rindex(b"\xff\xda")
    assert 5 <= jpeg_scans(plain) < 20 and jpeg_scans(file(Image.fromarray(noise(9, 9, 3)), "JPEG")) == 1
    motion = plain + plain[last:end] * 1_000  # a telephone's film after the picture
    assert read_image(motion).size == (2_000, 2_000)
    start = time.thread_time()
    with pytest.raises(MediaOverBound, match=r"1,0.. scans: give at most 50 \(MAX_JPEG_SCANS\)"):
        read_image(plain[:end] + plain[last:end] * 1_000 + plain[end:])
    assert time.thread_time() - start < 0.2


@pytest.mark.parametrize("piece", [b"\xff\xe1\0\x0aExif\0\0xx", b"\xff\xfe\0\2", b"\xff\xd9", b"\xff\xd0", b"\xff"])
def test_a_header_of_many_pieces_is_not_read_to_its_end(piece: bytes) -> None:
    """Each piece of EXIF data was put to the others, which took minutes for 24 MB."""
    plain = file(Image.new("L", (9, 9)), "JPEG")
    assert image_size(plain[:2] + piece * 900 + plain[2:]) == (9, 9)
    start = time.thread_time()
    with pytest.raises(MediaOverBound, match=r"header of over 5,000 pieces: .* \(MAX_HEADER_PIECES\)"):
        image_size(plain[:2] + piece * (24_000_000 // len(piece)) + plain[2:])
    assert time.thread_time() - start < 0.5


def test_the_pieces_of_png_and_gif_are_counted_and_those_of_pixels_are_not() -> None:
    png, gif = (file(Image.new("L", (9, 9)), kind) for kind in ("PNG", "GIF"))
    text = b"\0\0\0\1" + b"tEXta" + struct.pack(">I", zlib.crc32(b"tEXta"))
    start = 13 + 3 * 2 ** ((gif[10] & 7) + 1)  # after the palette
    for data in (png[:33] + text * 9_000 + png[33:], gif[:start] + b"!\xfe\1a\0" * 9_000 + gif[start:]):
        with pytest.raises(MediaOverBound, match="MAX_HEADER_PIECES"):
            image_size(data)
    assert read_image(png[:-12] + text * 9_000 + png[-12:]).size == (9, 9)


def test_markers_without_a_length_are_passed_over_in_a_scan() -> None:
    plain = file(Image.fromarray(noise(9, 9, 3)), "JPEG")
    start = time.thread_time()
    assert jpeg_scans(plain[:-2] + b"\xff\x01\xff\xd8" * 6_000_000 + plain[-2:]) == 1
    assert time.thread_time() - start < 0.5


def test_a_bmp_that_pillow_decodes_byte_by_byte_is_refused() -> None:
    rows = b"\1\0\0\0" * 7_000 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 7_000, 7_000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(header) + 1_024
    data = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + bytes(1_024) + rows
    with pytest.raises(MediaError, match="run-length encoded BMP"):
        read_image(data)


def test_the_reader_runs_without_the_rest_of_moonflow(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    for part in ("image_files.py", "media_structure.py", "media_errors.py"):
        (tmp_path / "alone" / part).write_bytes(Path(image_files.__file__).with_name(part).read_bytes())
    (tmp_path / "a.png").write_bytes(ODD["rgba"][0])
    program = "import sys, alone.image_files as m; print(m.read_image(open('a.png', 'rb').read()), *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "mode=RGB size=36x20" in ran.stdout and "model" not in ran.stdout.split()
