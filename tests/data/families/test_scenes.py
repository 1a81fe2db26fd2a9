"""Scenes: what is said of the shapes is found again in the pixels; no combination is in both splits."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from model.data.families.scenes import (
    CELL,
    COLOURS,
    PLACES,
    SCENE_BOX,
    SCENE_CAPTION,
    SHAPES,
    combinations,
    sources,
)
from model.data.samples.sample import Sample

FILLED = {"circle": 0.79, "square": 1.0, "triangle": 0.5, "cross": 0.56, "ring": 0.56}  # of the box


def shapes_in(sample: Sample) -> list[tuple[str, float, tuple[int, int, int, int], bool]]:
    """(colour, filled share, box, whether its middle is empty) of every blob that is not ground."""
    pixels = np.asarray(Image.open(io.BytesIO(sample.media["png"]))).astype(int)
    distances = np.abs(pixels[..., None, :] - np.array(list(COLOURS.values()))).sum(-1)
    found = []
    for number, colour in enumerate(COLOURS):  # colour by colour: neighbours may touch
        labels, _ = ndimage.label((pixels.max(2) > 100) & (distances.argmin(2) == number))
        for blob_number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            blob: NDArray[np.bool_] = labels[rows, columns] == blob_number
            hollow = not blob[blob.shape[0] // 2, blob.shape[1] // 2]
            found.append((colour, float(blob.mean()), (columns.start, rows.start, columns.stop, rows.stop), hollow))
    return found


def test_splits_share_no_combination_and_both_have_every_colour_shape_and_place() -> None:
    train, held_out = combinations("train"), combinations("eval")
    assert len(set(train) | set(held_out)) == len(train) + len(held_out) == len(COLOURS) * len(SHAPES) * len(PLACES)
    for split in (train, held_out):
        for part, every in enumerate((COLOURS, SHAPES, PLACES)):
            assert {combination[part] for combination in split} == set(every)
    assert set(sources("train")).isdisjoint(sources("eval"))


def test_captions_say_what_the_pixels_show() -> None:
    counts, touching = Counter[int](), 0
    for index in range(150):
        sample = SCENE_CAPTION.sample(0, "eval", index)
        said = sample.answer.split(" and ")
        blobs = sorted(shapes_in(sample), key=lambda blob: (blob[2][1] // CELL, blob[2][0] // CELL))
        if len(said) == len(blobs) + 1:
            touching += 1
            continue
        assert len(said) == len(blobs)
        for text, (colour, filled, (x0, y0, x1, y1), hollow) in zip(said, blobs, strict=True):
            words = text.split()
            place = PLACES[3 * ((y0 + y1) // 2 // CELL) + (x0 + x1) // 2 // CELL]
            assert words[:2] == ["a", colour] and text.endswith(f" at the {place}")
            assert hollow == (words[2] == "ring") and abs(filled - FILLED[words[2]]) < 0.16
            assert tuple(text.removeprefix("a ").replace(" at the", "").split(" ", 2)) in combinations("eval")
        counts[len(said)] += 1
    assert min(counts[1], counts[2]) > 50 and touching <= 2


def test_boxes_hold_the_shape_that_is_asked_for() -> None:
    found = 0
    for index in range(150):
        sample = SCENE_BOX.sample(0, "eval", index)
        question = sample.messages[0]["content"][1]["text"]
        box = [int(value) for value in sample.answer.split()]
        fits = [
            blob for blob in shapes_in(sample)
            if blob[0] in question and all(abs(v * 100 / 84 - b) <= 1.01 for v, b in zip(blob[2], box, strict=True))
        ]  # fmt: skip
        found += len(fits) == 1
    assert found >= 147  # the rest touches a shape of its colour


def test_a_caption_of_boxes_tells_every_shape() -> None:
    captions = [s for index in range(60) if (s := SCENE_BOX.sample(0, "train", index)).segments]
    assert len(captions) > 15
    for sample in captions:
        told = sample.segments[1]["text"].split("; ")
        colours, shown = Counter(text.split()[0] for text in told), Counter(blob[0] for blob in shapes_in(sample))
        assert set(colours) == set(shown) and len(told) >= shown.total()
        assert all(len(text.split()) == 6 and text.split()[1] in SHAPES for text in told)
