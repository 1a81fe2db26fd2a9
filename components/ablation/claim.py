"""A claim about an ablation's arms: its rule, its verdict, and the figures in words (ours)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.ablation.cells import arm_of, no_result_lines

LEAST_SEEDS = 3
"""Seeds that a verdict takes (ours): with fewer, one lucky seed decides."""
VERDICTS = {True: "holds", False: "does not hold", None: "no verdict"}
TONES = {True: "yes", False: "no", None: "plain"}
"""Of a page."""


def too_few(seeds: int) -> str:
    """Why so many seeds give no verdict, "" if they are enough."""
    if seeds >= LEAST_SEEDS:
        return ""
    return f"no verdict from {seeds} seed{'' if seeds == 1 else 's'}, it takes {LEAST_SEEDS} or more"


@dataclass(frozen=True)
class Claim:
    """A claim and what was measured.

    Attributes:
        text: the claim with its rule.
        seeds: how many seeds the figures are of.
        met: whether the figures meet the rule, however many seeds there are; None if they cannot show it.
        figures: in words.
    """

    text: str
    seeds: int = 0
    met: bool | None = None
    figures: str = ""

    @property
    def holds(self) -> bool | None:
        """None if there is no verdict."""
        return None if too_few(self.seeds) else self.met

    @property
    def verdict(self) -> str:
        """In words; with too few seeds, how many there were."""
        return too_few(self.seeds) or VERDICTS[self.met]

    def __str__(self) -> str:
        return f"{self.text}: {self.verdict}" + (f" ({self.figures})" if self.figures else "")


def above_zero(text: str, gain: Mapping[str, Any] | None) -> Claim:
    """Whether the interval of a gain (of ``spread.over_seeds``) lies above 0; None for what was not measured."""
    if gain is None:
        return Claim(text)
    met = None if gain["half"] is None else gain["mean"] > gain["half"]
    return Claim(text, len(gain["seeds"]), met, by_seed(gain))


def in_each_seed(met: bool, arms: Collection[str], no_result: Iterable[str]) -> bool | None:
    """``Claim.met`` of a claim about each seed: one seed refutes it, and it takes all of them to show it.

    Args:
        met: whether each seed that has a result meets the rule.
        arms: those that the figures are of.
        no_result: cells without a result.
    """
    return None if met and any(arm_of(cell) in arms for cell in no_result) else met


def with_no_result(claims: Iterable[Claim], no_result: Sequence[str]) -> list[Claim]:
    """The claims, whose figures name the cells without a result as well."""
    lines = no_result_lines(no_result)
    return [replace(claim, figures="; ".join(filter(None, [claim.figures, *lines]))) for claim in claims]


def by_seed(cell: Mapping[str, Any], form: str = "+.1f") -> str:
    """``+21.0 ± 4.0: +20.0, +22.0``: the mean of ``cell``, its 95% half width, each seed; ``form`` is a number's."""
    half = "" if cell["half"] is None else f" ± {cell['half']:{form.removeprefix('+')}}"
    return f"{cell['mean']:{form}}{half}: " + ", ".join(f"{value:{form}}" for value in cell["seeds"].values())
