"""The page of an ablation: ``ablation.html``, which the page of each one extends with its question and its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.ablation.claim import TONES, Claim
from components.ablation.tables import Table
from components.runtime.pages import template

Chart = tuple[str, str, str]
"""Title, note and drawing; the drawing of a chart without a curve is empty."""


def render_page(
    page: Path,
    extra: Mapping[str, Any],
    *,
    sentences: Sequence[str],
    claims: Sequence[Claim] = (),
    tables: Sequence[Table] = (),
    charts: Sequence[Chart] = (),
    **more: Any,
) -> str:
    """The page of an ablation.

    Args:
        page: a template that extends ``ablation.html``.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
        sentences: one for each finding; those that say a claim again are left out.
        charts: those without a drawing are left out.
        more: values that only this template uses.
    """
    told = {str(claim) for claim in claims}
    return template.render(
        page,
        title=extra.get("run_id", "run"),
        error=extra.get("error", ""),
        warnings=extra.get("warnings", ()),
        claims=claims,
        tones=TONES,
        tables=tables,
        charts=[chart for chart in charts if chart[2]],
        sentences=[line for line in sentences if line not in told],
        **more,
    )
