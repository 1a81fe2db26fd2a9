"""What the image and video families share: one drawn medium becomes a question or a caption (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from model.boundary.errors import MoonflowError
from model.data.families.family import Family
from model.data.samples.sample import Ability, Sample, Split

CAPTION_SHARE = 0.5  # of the train samples; the eval samples are all questions


@dataclass(frozen=True)
class Drawn:
    """One medium with one question about it.

    Attributes:
        media: the encoded PNG or MP4.
        question, answer: what the user asks and the assistant's whole reply.
        caption: a description that holds the answer.
        source: the held-out unit the medium came from; one of the family's sources.
    """

    media: bytes
    question: str
    answer: str
    caption: str
    source: str


Draw = Callable[[np.random.Generator, Split], Drawn]


def _generate(
    name: str,
    ability: Ability,
    modality: Literal["image", "video"],
    reward: str,
    draw: Draw,
    rng: np.random.Generator,
    split: Split,
    index: int,
) -> Sample:
    captioned = split == "train" and rng.random() < CAPTION_SHARE
    drawn = draw(rng, split)
    extension = "png" if modality == "image" else "mp4"
    sample = Sample(
        key=f"{name}-{split}-{index:06d}",
        family=name,
        ability=ability,
        modality=modality,
        source=drawn.source,
        media={extension: drawn.media},
    )
    shown = {"type": modality, "media": extension}
    if captioned:
        sample.segments.extend([shown, {"type": "text", "text": drawn.caption, "loss": True}])
        return sample
    sample.messages.extend(
        [
            {"role": "user", "content": [shown, {"type": "text", "text": drawn.question}]},
            {"role": "assistant", "content": drawn.answer},
        ]
    )
    return Sample(**{**vars(sample), "answer": drawn.answer, "reward": reward})


def visual_family(
    name: str,
    ability: Ability,
    modality: Literal["image", "video"],
    reward: str,
    draw: Draw,
    sources: Callable[[Split], list[str]],
) -> Family:
    """A family whose samples are one medium each: `CAPTION_SHARE` captions (train only), the rest questions.

    Args:
        name, ability, modality, sources: as in `Family`.
        reward: the verifier of the questions' answers.
        draw: (rng, split) -> one medium; a pure function of its arguments.
    """
    generate = partial(_generate, name, ability, modality, reward, draw)
    return Family(name, ability, modality, "task", generate, sources)


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it: scikit-learn alone takes seconds to import.

    Raises:
        MoonflowError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MoonflowError(f"the data of package {package} is missing: pip install moonflow's dependencies")
    return Path(spec.origin).parent
