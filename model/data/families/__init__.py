"""All families by name. To add one: write its module, append it here, give it a share in ``order/family_shares.py``."""

from __future__ import annotations

from model.data.families import chart, digits, judging, ocr, photo, programs, scenes, thinking, video, world
from model.data.families.array_tool import ARRAY_TOOL, ARRAY_TOOL_IMAGE
from model.data.families.coding import CODING
from model.data.families.dialogue import DIALOGUE
from model.data.families.facts import FACT_PROSE, FACT_QA
from model.data.families.family import Family
from model.data.families.interleaved import INTERLEAVED
from model.data.families.needle import NEEDLE, needle_family
from model.data.families.reasoning import REASONING_GYM
from model.data.families.recall import RECALL
from model.data.families.stdlib import CODE_WINDOW, PROSE_WINDOW, STDLIB_CODE, STDLIB_TEXT
from model.data.families.video_needle import VIDEO_NEEDLE, video_needle_family
from model.data.families.wide_search import SUB_SEARCH, WIDE_SEARCH

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        STDLIB_TEXT, STDLIB_CODE, PROSE_WINDOW, CODE_WINDOW, FACT_PROSE, RECALL,
        FACT_QA, REASONING_GYM, ARRAY_TOOL, WIDE_SEARCH, SUB_SEARCH, NEEDLE,
        *digits.FAMILIES, *ocr.FAMILIES, *scenes.FAMILIES, *photo.FAMILIES, *chart.FAMILIES, INTERLEAVED,
        ARRAY_TOOL_IMAGE, *video.FAMILIES, VIDEO_NEEDLE, *programs.FAMILIES, *thinking.FAMILIES, CODING, DIALOGUE,
        *world.FAMILIES, *judging.FAMILIES,
    )
}  # fmt: skip


def lengthened(characters: int, chunks: int) -> dict[str, Family]:
    """``FAMILIES`` with long texts of up to ``characters`` and long videos of up to ``chunks`` of 4 frames."""
    return FAMILIES | {family.name: family for family in (needle_family(characters), video_needle_family(chunks))}
