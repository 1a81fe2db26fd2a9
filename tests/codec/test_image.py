"""The image processor against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from model.boundary.errors import MoonflowError
from model.codec.image import (
    ImageConfig,
    MediaTooLarge,
    encode_image,
    encode_png,
    image_grid,
    image_size,
    scaled_size,
)
from tests.odd_media import blank_png, exif, file, noise

CONFIG = ImageConfig()


def test_defaults_are_the_released_ones() -> None:
    released = {
        "in_patch_limit": 16384,
        "patch_size": 14,
        "merge_kernel_size": 2,
        "patch_limit_on_one_side": 512,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "sample_fps": 2.0,
        "temporal_merge_kernel_size": 4,
        "fixed_output_tokens": None,
        "timestamp_mode": "hh:mm:ss.fff",
    }
    assert released.items() <= CONFIG.model_dump().items()
    assert CONFIG.image_mean == CONFIG.image_std == (0.5, 0.5, 0.5)
    with pytest.raises(ValidationError, match="patch_sise"):
        ImageConfig.model_validate({"patch_sise": 14})


def test_patches_are_in_row_order_with_channels_first() -> None:
    pixels = noise(28, 84, 3)
    values, grid = encode_image(pixels, CONFIG)
    assert grid == (1, 2, 6) and values.shape == (12, 3, 14, 14) and values.dtype == np.float32
    for row in range(2):
        for column in range(6):
            patch = pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            np.testing.assert_allclose(values[6 * row + column], patch.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_padding_is_right_and_bottom_and_comes_before_normalising() -> None:
    values, grid = encode_image(np.full((20, 30, 3), 255, np.uint8), CONFIG)
    assert grid == (1, 2, 4)
    image = values.reshape(2, 4, 3, 14, 14).transpose(2, 0, 3, 1, 4).reshape(3, 28, 56)
    assert (image[:, :20, :30] == 1).all()
    assert (image[:, 20:] == -1).all() and (image[:, :, 30:] == -1).all()  # black, not the mean gray


def test_mean_and_std_are_per_channel() -> None:
    config = ImageConfig(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 1.0))
    values, _ = encode_image(np.full((28, 28, 3), 255, np.uint8), config)
    np.testing.assert_allclose(values[0, :, 0, 0], [0.9 / 0.5, 0.8 / 0.25, 0.7], rtol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (84, 28), (1, 1), (13, 500), (1792, 1792)])
def test_small_images_keep_their_size(size: tuple[int, int]) -> None:
    assert scaled_size(*size, CONFIG.in_patch_limit, CONFIG) == size


def test_area_limit_shrinks_by_the_square_root() -> None:
    scale = math.sqrt(16384 / ((4000 // 14) * (3000 // 14)))
    assert scaled_size(4000, 3000, 16384, CONFIG) == (int(4000 * scale), int(3000 * scale))
    values, (_, height, width) = encode_image(noise(90, 120, 3), ImageConfig(in_patch_limit=16))
    scale = math.sqrt(16 / ((120 // 14) * (90 // 14)))
    expected = tuple(2 * math.ceil(int(side * scale) / 28) for side in (90, 120))
    assert (height, width) == expected and len(values) == height * width


def test_side_cap() -> None:
    assert scaled_size(14336, 28, 16384, CONFIG) == (7168, 14)
    assert scaled_size(28, 14336, 16384, CONFIG) == (14, 7168)


def test_shrinking_is_bicubic() -> None:
    pixels = noise(56, 56, 3)
    config = ImageConfig(in_patch_limit=4)
    values, grid = encode_image(pixels, config)
    small = Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)
    expected, _ = encode_image(small, CONFIG)
    assert grid == (1, 2, 2)
    np.testing.assert_array_equal(values, expected)


def test_all_ways_to_give_an_image_agree() -> None:
    pixels = noise(28, 56, 3)
    by_array, _ = encode_image(pixels, CONFIG)
    np.testing.assert_array_equal(by_array, encode_image(encode_png(pixels), CONFIG)[0])
    np.testing.assert_array_equal(by_array, encode_image(Image.fromarray(pixels), CONFIG)[0])
    gray = noise(28, 28)
    as_rgb = np.repeat(gray[..., None], 3, axis=2)
    np.testing.assert_array_equal(encode_image(encode_png(gray), CONFIG)[0], encode_image(as_rgb, CONFIG)[0])


def test_bad_images_are_told_in_one_line() -> None:
    png = encode_png(noise(28, 28, 3))
    for data in (b"", b"not an image", png[: len(png) // 2]):
        with pytest.raises(MoonflowError, match="cannot be decoded: give a PNG"):
            encode_image(data, CONFIG)
    with pytest.raises(MoonflowError, match="float32"):
        encode_image(np.zeros((28, 28, 3), np.float32), CONFIG)  # type: ignore[arg-type]
    with pytest.raises(MoonflowError, match=r"\[28, 28\]"):
        encode_image(noise(28, 28), CONFIG)


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (13, 500), (600, 3), (200, 300)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_header_gives_the_grid_that_encoding_gives(size: tuple[int, int], orientation: int) -> None:
    data = file(Image.new("RGB", size), exif=exif(orientation))
    for config in (CONFIG, ImageConfig(in_patch_limit=40, patch_limit_on_one_side=16)):
        assert image_grid(data, config) == encode_image(data, config)[1]
    assert image_size(data) == (size if orientation == 1 else size[::-1])


def test_a_large_image_is_refused_as_such() -> None:
    for call in (image_size, lambda data: image_grid(data, CONFIG), lambda data: encode_image(data, CONFIG)):
        with pytest.raises(MediaTooLarge, match="MAX_IMAGE_PIXELS"):
            call(blank_png(8_000, 8_000))
    assert issubclass(MediaTooLarge, MoonflowError)
