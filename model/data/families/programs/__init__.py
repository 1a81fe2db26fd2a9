"""``image_program``: IPython programs that answer questions about pictures; ``image_program_image`` shows them.

The text family never shows its pixels: they are in the environment only, and the trajectory must work on ``img``, or on
the list ``images``, with numpy and ``ndimage`` ("zero vision", paper section on SFT). The image family, its twin, shows
the picture or the frames with the same questions, for RL and evaluation; no mixture of SFT may name it.

There are 15 kinds (``KINDS``). Three of them (``UNTRAINED``) are in eval samples only, so that it can be measured what
training on the others does for work that no trajectory shows. Samples have the kinds of their split in turn, by their
index. A sample's key names its kind: ``image_program-count_objects-00000012``.

A trajectory has one to three calls, the cells of one style. In
``MISTAKE_SHARE`` of those with at most two cells and a short first one, a wrong version of it comes first: its error
is shown, the next cell repairs it, and the loss leaves the wrong cell out. The answer comes from how the scene was
built; a program that prints another one is an error.

Held out: the sources of the eval split (pairs of grey levels, handwritten digits), and of every kind the last wording
and the last style, which only eval samples have, each in half of them.

``narrow_program_image`` is what a team that writes visual trajectories by hand would have: the picture is shown, and
there are three kinds, one wording, one style and no mistakes. It is no task, only something to imitate: no stage reads
it but the arm of the ablation that measures what such trajectories do (paper section on SFT: they hurt).

Source: ours; the kinds of work are those of the paper's section on zero-vision SFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from model.codec.image import encode_png
from model.data.families.digits import digit_sources
from model.data.families.family import Family
from model.data.families.programs import charts, frames, measure, regions, tracing
from model.data.families.programs.canvas import palette_sources
from model.data.families.programs.kind import MASK_NAMES, Image, Kind, Scene, Style, filled
from model.data.families.programs.mistakes import wrong_versions
from model.data.families.programs.session import CellSession
from model.data.samples.sample import Sample, Split

KINDS: tuple[Kind, ...] = (*measure.KINDS, *regions.KINDS, *charts.KINDS, *tracing.KINDS, *frames.KINDS)
UNTRAINED = frozenset({"measure_length", "largest_region", "new_objects"})  # a measure, a region, several frames
TRAINED = tuple(kind for kind in KINDS if kind.name not in UNTRAINED)
NARROW = tuple(kind for kind in TRAINED if kind.name in ("crop", "count_objects", "read_bar"))
MOST_CALLS = 3
MISTAKE_SHARE = 0.32
MISTAKE_CHARS = 160  # of a cell that is written twice, at most
SIDES = range(28, 57)  # pixels of an array that is not shown: it takes little space in a shard
COLOUR_SIDES = range(28, 41)
PICTURE_SIDES = (28, 56, 84)  # pixels: whole language-model tokens


def _size(rng: np.random.Generator, kind: Kind, shown: bool) -> tuple[int, int]:
    sides = PICTURE_SIDES if shown else COLOUR_SIDES if kind.colour else SIDES
    height, width = (int(rng.choice(sides)) for _ in range(2))
    wide = [side for side in sides if side >= kind.least_width]
    return height, width if width in wide else int(rng.choice(wide or range(kind.least_width, PICTURE_SIDES[-1] + 1)))


def _mistaken(
    rng: np.random.Generator, cell: str, images: Sequence[Image]
) -> tuple[CellSession, list[tuple[str, str]]]:
    """A session in which a wrong version of the cell was run, and that version with its error."""
    for wrong in wrong_versions(rng, cell):
        session = CellSession(images)
        result, failed = session.run(wrong)
        if failed:
            return session, [(wrong, result)]
    return CellSession(images), []


def _trajectory(
    rng: np.random.Generator | None, cells: Sequence[str], images: Sequence[Image]
) -> tuple[list[dict[str, object]], str]:
    """The turns up to the last result, and that result. Without an ``rng``, no cell is wrong."""
    short = len(cells) < MOST_CALLS and len(cells[0]) <= MISTAKE_CHARS
    if rng is not None and short and rng.random() < MISTAKE_SHARE:
        session, wrong = _mistaken(rng, cells[0], images)
    else:
        session, wrong = CellSession(images), []
    calls = wrong + [(cell, session.run(cell)[0]) for cell in cells]
    turns: list[dict[str, object]] = []
    for number, (cell, result) in enumerate(calls):
        call = {"name": "ipython", "arguments": {"code": cell}}
        untrained = {"loss": False} if number < len(wrong) else {}
        turns.append({"role": "assistant", "content": "", "tool_calls": [call], **untrained})
        turns.append({"role": "tool", "tool_call_id": f"functions.ipython:{number}", "content": result})
    return turns, calls[-1][1]


def _sample(
    name: str, kind: Kind, scene: Scene, wording: str, style: Style, m: str, index: int, shown: bool,
    rng: np.random.Generator | None,
) -> Sample:  # fmt: skip
    """A task. RuntimeError if its program does not print what was drawn.

    Args:
        m: what the program calls a binary picture.
        shown: whether the question comes with the pictures.
        rng: of the mistakes; None: there are none.
    """
    fields = {**scene.fields, "m": m}
    question = filled(wording, fields)
    question = question[0].upper() + question[1:]
    turns, printed = _trajectory(rng, [filled(cell, fields) for cell in style.cells], scene.images)
    if printed != str(scene.answer):
        raise RuntimeError(f"{kind.name}, style {style.name!r} prints {printed!r}, but {scene.answer!r} was drawn")
    media = {}
    if shown:
        names = ["png"] if len(scene.images) == 1 else [f"{number}.png" for number in range(1, len(scene.images) + 1)]
        media = {medium: encode_png(img) for medium, img in zip(names, scene.images, strict=True)}
    pixels = list(media) or [img.tolist() for img in scene.images]
    environment = {"array": pixels[0]} if len(pixels) == 1 else {"images": pixels}
    parts = [*({"type": "image", "media": medium} for medium in media), {"type": "text", "text": question}]
    return Sample(
        key=f"{name}-{kind.name}-{index:08d}", family=name, ability="coding", modality="image" if shown else "text",
        source=scene.source,
        messages=[
            {"role": "user", "content": parts if shown else question},
            *turns,
            {"role": "assistant", "content": printed},
        ],
        tools=["ipython"], answer=scene.answer, reward="number" if isinstance(scene.answer, int) else "exact",
        environment=environment, media=media,
    )  # fmt: skip


def _generate(name: str, shown: bool, rng: np.random.Generator, split: Split, index: int) -> Sample:
    kinds = TRAINED if split == "train" else KINDS
    kind = kinds[index % len(kinds)]
    scene = kind.draw(rng, split, *_size(rng, kind, shown))
    wording, style = kind.choose(rng, split)
    m = MASK_NAMES[int(rng.integers(len(MASK_NAMES)))]
    return _sample(name, kind, scene, wording, style, m, index, shown, rng)


def _narrow(name: str, rng: np.random.Generator, split: Split, index: int) -> Sample:
    kind = NARROW[index % len(NARROW)]
    scene = kind.draw(rng, split, *_size(rng, kind, shown=True))
    task = _sample(name, kind, scene, kind.wordings[0], kind.styles[0], MASK_NAMES[0], index, True, None)
    return replace(task, answer=None, reward="", environment={})


def sources(split: Split) -> list[str]:
    return palette_sources(split) + digit_sources(split)


IMAGE_PROGRAM = Family("image_program", "coding", "text", "task", partial(_generate, "image_program", False), sources)
IMAGE_PROGRAM_IMAGE = Family(
    "image_program_image", "coding", "image", "task", partial(_generate, "image_program_image", True), sources
)
NARROW_PROGRAM_IMAGE = Family(
    "narrow_program_image", "coding", "image", "conversation", partial(_narrow, "narrow_program_image"), sources
)
FAMILIES = (IMAGE_PROGRAM, IMAGE_PROGRAM_IMAGE, NARROW_PROGRAM_IMAGE)


def kind_of(sample: Sample) -> str:
    """The kind of image program that a sample's key names; "" for a sample of another family."""
    if sample.family not in (family.name for family in FAMILIES):
        return ""
    name = sample.key.removeprefix(f"{sample.family}-").rpartition("-")[0]
    return name if name in (kind.name for kind in KINDS) else ""
