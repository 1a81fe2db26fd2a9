"""A claim about an ablation's arms: its rule, whether it held, and the figures in words (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

VERDICTS = {True: "holds", False: "does not hold", None: "unknown"}
TONES = {True: "yes", False: "no", None: "plain"}
"""Of a page."""


@dataclass(frozen=True)
class Claim:
    """``holds`` is None if what has ended cannot show it."""

    text: str
    holds: bool | None
    figures: str

    @property
    def verdict(self) -> str:
        return VERDICTS[self.holds]

    def __str__(self) -> str:
        return f"{self.text}: {self.verdict}" + (f" ({self.figures})" if self.figures else "")


def with_unfinished(claims: Sequence[Claim], arms: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """The claims, whose figures name the seeds that an arm did not finish (its ``missing``) as well."""
    lost = "".join(f"; {name}: seed {seed} did not finish" for name, arm in arms.items() for seed in arm["missing"])
    return [replace(claim, figures=f"{claim.figures}{lost}".removeprefix("; ")) for claim in claims]


def by_seed(cell: Mapping[str, Any], form: str = "+.1f") -> str:
    """``+21.0 ± 4.0: +20.0, +22.0``: the mean of ``cell``, its 95% half width, each seed; ``form`` is a number's."""
    half = "" if cell["half"] is None else f" ± {cell['half']:{form.removeprefix('+')}}"
    return f"{cell['mean']:{form}}{half}: " + ", ".join(f"{value:{form}}" for value in cell["seeds"].values())
