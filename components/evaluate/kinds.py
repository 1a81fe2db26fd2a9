"""The scores of image programs by kind (`model.data.families.programs`), where such a suite is evaluated (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, Any]]
"""Suite -> its `model.evals.score.Score` in JSON's terms; what was written before there were kinds has none."""


def kind_rows(results: Mapping[str, Scores], steps: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each checkpoint, suite and kind: ``step, suite, kind, value, tool_calls, n``."""
    return [
        {"step": step, "suite": suite, "kind": kind, **found}
        for step in steps
        for suite, score in results[step].items()
        for kind, found in score.get("kinds", {}).items()
    ]


def kind_metrics(scores: Scores) -> dict[str, float]:
    """``kind/<suite>/<kind>/<figure>`` of one checkpoint; the figures are those of a `KindScore`."""
    return {
        f"kind/{suite}/{kind}/{name}": float(value)
        for suite, score in scores.items()
        for kind, found in score.get("kinds", {}).items()
        for name, value in found.items()
    }
