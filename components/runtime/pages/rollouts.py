"""The page of a round's episodes: what was asked, what the policy and its tools said, what it earned (source: ours).

``rollouts.html`` lays it out. All texts come from data, models and tools: the template escapes them, and ``rendered``
shortens them until the page is small.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.runtime.pages import template
from components.runtime.pages.episode import ended
from model.boundary.untrusted_text import cut

_PAGE = Path(__file__).with_name("rollouts.html")
PAGE_BYTES = 600_000
PICTURE_BYTES = 60_000
"""A larger picture is not shown."""
TEXTS = (4_000, 1_000, 250, 60)  # characters of one text, the next one if the page is too large
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


@dataclass(frozen=True)
class Turn:
    """What was said between two others.

    Attributes:
        tokens: how many the policy sampled; 0 for what it was told.
        parts: what it consists of -> its text: text, thinking, a call or a fault.
    """

    tokens: int
    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode.

    Attributes:
        about: what it is, in short texts.
        asked: (role, text) of each turn of the prompt.
        media: contents of the files that the prompt shows.
        expected: the right answer.
        outcome: as ``Episode.finish_reason``.
        figures: reward, its parts and the advantage.
    """

    about: Mapping[str, str]
    asked: Sequence[tuple[str, str]]
    media: Sequence[bytes]
    turns: Sequence[Turn]
    expected: str
    outcome: str
    right: bool
    figures: Mapping[str, float]


def rendered(title: str, note: str, episodes: Mapping[str, Sequence[PlayedEpisode]]) -> str | None:
    """The page, with no script, font or picture from elsewhere, of at most PAGE_BYTES; None if that is not possible.

    Args:
        episodes: by heading.
    """
    for pictures in (True, False):
        for most in TEXTS:
            page = template.render(
                _PAGE,
                title=title,
                note=note,
                groups=episodes,
                picture=picture if pictures else lambda content: "",
                short=lambda text, most=most: cut(text, most),
                ended=ended,
            )
            if len(page.encode()) <= PAGE_BYTES:
                return page
    return None


def picture(content: bytes) -> str:
    """A data URL of a picture that every browser shows and that is small; "" for anything else."""
    kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), "")
    if not kind or len(content) > PICTURE_BYTES:
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
