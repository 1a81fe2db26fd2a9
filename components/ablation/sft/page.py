"""The page of an SFT ablation: its tables and the verdicts on the claims. ``sft.html`` is the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.ablation.page import render_page
from components.ablation.sft.claims import claims
from components.ablation.sft.table import sentences, tables

_PAGE = Path(__file__).with_name("sft.html")


def render(
    found: Mapping[str, Any], events: Mapping[str, Sequence[Mapping[str, float]]], extra: Mapping[str, Any]
) -> str:
    """The page of an ablation.

    Args:
        found: the result of ``comparison.compare``.
        events: not used; the page of every ablation is given them.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
    """
    return render_page(_PAGE, extra, claims=claims(found), tables=tables(found), sentences=sentences(found))
