"""Mean, spread and interval of a figure over seeds (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

CONFIDENCE = 0.95


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one value)."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "n": len(values)}


def half_width(values: Sequence[float]) -> float | None:
    """The half width of the mean's 95% confidence interval (Student's t); None for fewer than two values."""
    from scipy.stats import t  # type: ignore[import-untyped]

    n = len(values)
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None


def over_seeds(values: Mapping[int, float]) -> dict[str, Any]:
    """``seeds`` (seed, as a text, -> its value), their mean and its 95% half width."""
    each = list(values.values())
    return {
        "seeds": {str(seed): value for seed, value in values.items()},
        "mean": fmean(each),
        "half": half_width(each),
    }


def as_text(found: Mapping[str, Any], digits: int = 1) -> str:
    """``84.2 ± 1.0``: the mean and the standard deviation of what ``spread`` returned."""
    sd = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{sd}"
