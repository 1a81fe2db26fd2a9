"""The answers of the kinds, found again in the pixels by other means: PIL, scikit-image, plain loops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest
from PIL import Image, ImageChops
from skimage.measure import label, regionprops  # type: ignore[import-untyped]

from model.data.families.family import SPLITS
from model.data.families.programs import KINDS
from model.data.families.programs.canvas import SHAPES, palettes, shape_area, shape_mask
from model.data.families.programs.kind import Kind, Scene
from model.data.samples.sample import Split


def number(scene: Scene, name: str) -> int:
    value = scene.fields[name]
    assert isinstance(value, int)
    return value


def above(picture: Image.Image, level: int) -> int:
    return sum(picture.histogram()[level + 1 :])


def mask(scene: Scene, frame: int = 0) -> np.ndarray:
    return scene.images[frame] > number(scene, "t")


def blobs(mask_HW: np.ndarray) -> int:
    return int(label(mask_HW, connectivity=2).max())  # touching at a corner counts as one


def crop(scene: Scene) -> int:
    r0, r1, c0, c1, t = (number(scene, name) for name in ("r0", "r1", "c0", "c1", "t"))
    return above(Image.fromarray(scene.images[0]).crop((c0, r0, c1, r1)), t)


def binarise(scene: Scene) -> int:
    picture = Image.fromarray(scene.images[0])
    return int(100 * above(picture, number(scene, "t")) / (picture.width * picture.height))


def longest(scene: Scene) -> int:
    on = mask(scene) if scene.fields["way"] == "horizontal" else mask(scene).T
    return max(sum(1 for _ in run) for row in on.tolist() for value, run in groupby(row) if value)


def area(scene: Scene) -> int:
    channel = ("red", "green", "blue").index(str(scene.fields["colour"]))
    return above(Image.fromarray(scene.images[0]).split()[channel], 128)


def largest(scene: Scene) -> int:
    return int(max(region.area for region in regionprops(label(mask(scene), connectivity=2))))


def objects(scene: Scene) -> int:
    strongest = scene.images[0].max(2) > 128
    colour = scene.images[0].argmax(2) == ("red", "green", "blue").index(str(scene.fields["colour"]))
    return blobs(strongest & colour)


def halves(scene: Scene) -> str:
    first, second = str(scene.fields["first"]), str(scene.fields["second"])
    axis = 1 if first == "left" else 0
    places = np.argwhere(mask(scene))[:, axis]
    before = int((places < scene.images[0].shape[axis] // 2).sum())
    return first if before > len(places) - before else second


def bar(scene: Scene) -> int:
    heights = [sum(column) for column in mask(scene).T.tolist()]
    bars = [next(run) for standing, run in groupby(heights, bool) if standing]
    return round(bars[number(scene, "bar") - 1] / number(scene, "unit"))


def axis(scene: Scene) -> int:
    ticks = [row for row, level in enumerate(scene.images[0][:, number(scene, "column")].tolist())
             if level > number(scene, "low")]  # fmt: skip
    (dot,) = np.flatnonzero(mask(scene).any(1))
    line = np.polyfit(ticks, [number(scene, "step") * n for n in range(len(ticks))][::-1], 1)
    return round(float(np.polyval(line, dot)))


def line(scene: Scene) -> int:
    labels = label(mask(scene), connectivity=2)
    (end,) = np.flatnonzero(labels[:, -1] == labels[number(scene, "row"), 0])
    return int(end)


def digit(scene: Scene) -> int:
    img, row, column = scene.images[0].astype(float), number(scene, "row"), number(scene, "column")
    tiles = np.stack([img[row : row + 8, column : column + 8], *(img[:8, 8 * n : 8 * n + 8] for n in range(10))])
    return int(np.corrcoef(tiles.reshape(11, 64))[0, 1:].argmax())


def changed(scene: Scene) -> int:
    return above(ImageChops.difference(*map(Image.fromarray, scene.images)), 0)


def motion(scene: Scene) -> str:
    (y0, x0), (y1, x1) = (regionprops(mask(scene, frame).astype(int))[0].centroid for frame in (0, -1))
    assert (y0 == y1) != (x0 == x1)
    return ("down" if y1 > y0 else "up") if x0 == x1 else ("right" if x1 > x0 else "left")


def new(scene: Scene) -> int:
    return blobs(mask(scene, 1)) - blobs(mask(scene, 0))


FOUND_AGAIN: dict[str, Callable[[Scene], int | str]] = {
    "crop": crop, "binarise": binarise, "measure_length": longest, "measure_area": area,
    "connected_components": lambda scene: blobs(mask(scene)), "largest_region": largest, "count_objects": objects,
    "compare_regions": halves, "read_bar": bar, "read_axis": axis, "follow_line": line, "read_digit": digit,
    "diff_frames": changed, "track_motion": motion, "new_objects": new,
}  # fmt: skip


def test_every_kind_is_checked() -> None:
    assert list(FOUND_AGAIN) == [kind.name for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_in_the_pixels(kind: Kind, split: Split) -> None:
    rng = np.random.default_rng(11)
    for _ in range(60):
        scene = kind.draw(rng, split, int(rng.integers(28, 85)), int(rng.integers(kind.least_width, 85)))
        assert FOUND_AGAIN[kind.name](scene) == scene.answer


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shapes_area_is_that_of_its_mask(shape: str) -> None:
    for side in range(3, 28, 2):
        on = shape_mask(shape, side)
        assert on.sum() == shape_area(shape, side) and on.shape == (side, side)
        assert label(on, connectivity=1).max() == 1 and label(~np.pad(on, 1), connectivity=2).max() == 1, "no holes"


def test_levels_are_split_and_apart() -> None:
    train, held_out = palettes("train"), palettes("eval")
    assert not set(train) & set(held_out) and 0.1 < len(held_out) / (len(train) + len(held_out)) < 0.2
    assert all(palette.ink - palette.ground > 100 for palette in (*train, *held_out))
