"""Crops of real photographs and what their pixels say about them (data: pictures inside scikit-image; source: ours).

The eval crops come from photographs that training never shows; both views of the stereo pair are in one split.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.codec.image import encode_png
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.samples.sample import Split

PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "cell.png",
        "clock_motion.png",
        "coffee.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
    ),
    "eval": ("camera.png", "chelsea.png", "coins.png", "moon.png", "rocket.jpg"),
}
SIZE = 56  # pixels: 2 x 2 language-model tokens
TRIES = 40  # crops that are tried for the wanted answer; after them any clear answer is taken
QUESTIONS = {
    "brightness": ("Dark or bright?", ("dark", "bright")),
    "colour": ("Colored or gray?", ("colored", "gray")),
    "texture": ("Smooth or rough?", ("smooth", "rough")),
    "side": ("Brighter side: left or right?", ("left", "right")),
}


@cache
def _photo(name: str) -> Image.Image:
    image = Image.open(package_folder("skimage") / "data" / name).convert("RGB")
    image.thumbnail((400, 400), Image.Resampling.BOX)
    return image


def attributes(pixels_HWC: NDArray[np.uint8]) -> dict[str, str]:
    """What is clearly so in a picture; an attribute near its threshold is left out.

    Args:
        pixels_HWC: uint8 [H, W, 3].

    Returns:
        Those of ``brightness``, ``colour``, ``texture`` and ``side`` that can be told, each with its one-word value.
    """
    values = pixels_HWC.astype(np.float32)
    spread = float(np.ptp(values.mean((0, 1))))  # between the channels' means
    gray_HW = values.mean(2)
    mean = float(gray_HW.mean())
    half = gray_HW.shape[1] // 2
    lean = float(gray_HW[:, :half].mean() - gray_HW[:, half:].mean())
    roughness = float(np.abs(np.diff(gray_HW, axis=0)).mean() + np.abs(np.diff(gray_HW, axis=1)).mean()) / 2
    found = {}
    if abs(mean - 118) > 18:
        found["brightness"] = "dark" if mean < 118 else "bright"
    if not 5 < spread < 20:
        found["colour"] = "gray" if spread <= 5 else "colored"
    if not 5 < roughness < 11:
        found["texture"] = "smooth" if roughness <= 5 else "rough"
    if abs(lean) > 12:
        found["side"] = "left" if lean > 0 else "right"
    return found


def sources(split: Split) -> list[str]:
    return [f"skimage.data/{name}" for name in PHOTOS[split]]


def _crop(rng: np.random.Generator, image: Image.Image) -> NDArray[np.uint8]:
    side = int(rng.integers(SIZE, min(image.size) * 2 // 3 + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    crop = image.resize((SIZE, SIZE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    pixels_HWC = np.asarray(crop)
    return pixels_HWC[:, ::-1] if rng.random() < 0.5 else pixels_HWC


def _draw(rng: np.random.Generator, split: Split) -> Drawn:
    aspect = list(QUESTIONS)[rng.integers(len(QUESTIONS))]
    question, answers = QUESTIONS[aspect]
    # The answer is drawn first and then a crop for it, so that both answers are about equally common.
    wanted = answers[rng.integers(len(answers))]
    tried = 0
    while True:
        name = PHOTOS[split][rng.integers(len(PHOTOS[split]))]
        pixels_HWC = _crop(rng, _photo(name))
        found = attributes(pixels_HWC)
        tried += 1
        if found.get(aspect) == wanted or (tried > TRIES and aspect in found):
            break
    words = [value for key, value in found.items() if key != "side"]
    caption = f"a {' '.join(words)} photo" if words else "a photo"
    if "side" in found:
        caption += f", brighter {found['side']}"
    return Drawn(encode_png(pixels_HWC), question, found[aspect], caption, f"skimage.data/{name}")


PHOTO = visual_family("photo", "knowledge", "image", "exact", _draw, sources)
FAMILIES = (PHOTO,)
