from __future__ import annotations

import numpy as np
import pytest

from model.swarm.video.scenes import CUT, change, chosen, histogram
from tests.odd_media import noise


def test_a_histogram_counts_each_channel_by_itself() -> None:
    pixels = noise(9, 16, 3)
    expected = [np.histogram(pixels[..., channel], bins=16, range=(0, 256))[0] / (9 * 16) for channel in range(3)]
    assert np.allclose(histogram(pixels), expected)


def test_change_is_the_share_of_pixels_with_another_colour() -> None:
    one = np.zeros((4, 4, 3), np.uint8)
    other = one.copy()
    other[:1] = 255
    assert change(histogram(one), histogram(one)) == 0
    assert change(histogram(one), histogram(other)) == pytest.approx(0.25)
    assert change(histogram(one), histogram(one + 255)) == 1


def test_the_first_frame_of_each_scene_comes_before_all_others_and_the_rest_fills_the_gaps() -> None:
    changes = [0.9] + [0.0] * 99
    changes[30], changes[40] = 0.5, 0.8
    assert chosen(changes, 1) == [0]
    assert chosen(changes, 2) == [0, 40], "the larger change"
    assert chosen(changes, 3) == [0, 30, 40]
    assert chosen(changes, 6) == [0, 15, 30, 40, 60, 80], "as far apart as they can be"
    assert chosen([CUT - 0.01] * 8, 4) == [0, 2, 4, 6]
    assert chosen(changes[:3], 8) == [0, 1, 2]
    assert [len(set(chosen([0.9] * 50, most))) for most in range(1, 60)] == [*range(1, 51), *[50] * 9]
