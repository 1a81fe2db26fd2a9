"""What a swarm ablation says about the claims: the rule of each, whether it held, and the figures in words (ours).

They are about the arm ``trained``. A claim is judged by the mean over the seeds that finished; each of them is shown,
and those that did not finish are named. A swarm that finds nothing meets no claim about speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from components.ablation.spread import half_width
from components.ablation.swarm.arms import TRAINED
from components.ablation.swarm.comparison import FLAT_FROM, values

GAIN = 6.0  # points of F1 over the best single agent
FASTER = 3.0  # times fewer critical steps and seconds
GROWTH = 1.5  # of the time from FLAT_FROM parts to the most
OVERHEAD = 1.1  # critical steps on easy tasks, by those of one agent
VERDICTS = {True: "holds", False: "does not hold", None: "unknown"}


@dataclass(frozen=True)
class Claim:
    """``holds`` is None if no seed has all of its figures."""

    text: str
    holds: bool | None
    figures: str

    @property
    def verdict(self) -> str:
        return VERDICTS[self.holds]

    def __str__(self) -> str:
        return f"{self.text}: {self.verdict}" + (f" ({self.figures})" if self.figures else "")


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    arm = found["arms"].get(TRAINED, {"figures": {}, "missing": []})
    wide = "at the largest N, "
    return [
        _claim(
            arm, f"item-F1 is at least {GAIN:g} points above the best single agent's",
            {"f1_gain_points": "points"}, lambda gain: gain >= GAIN,
        ),
        _claim(
            arm, f"{wide}the swarm has no lower item-F1 and takes {FASTER:g} times fewer critical steps and seconds",
            {"wide_f1": "F1", "wide_f1_points": "points of F1", "wide_steps_ratio": "times the steps",
             "wide_seconds_ratio": "times the seconds"},
            lambda f1, more, steps, seconds: f1 > 0 and more >= 0 and min(steps, seconds) >= FASTER,
        ),
        _claim(
            arm, f"from N = {FLAT_FROM} to the largest N, the swarm's time grows at most {GROWTH:g} times",
            {"wide_f1": "F1", "growth": "times"}, lambda f1, growth: f1 > 0 and growth <= GROWTH,
        ),
        _claim(
            arm, f"easy tasks take at most {OVERHEAD:g} times the critical steps of one agent",
            {"easy_f1": "F1", "easy_overhead": "times"}, lambda f1, overhead: f1 > 0 and overhead <= OVERHEAD,
        ),
        _claim(
            arm, f"contexts are divided: {wide}the largest one is smaller than the best single agent's, and in windows "
            "of half the size the swarm loses less F1",
            {"context_ratio": "times the context", "halved_swarm_points": "points lost by the swarm",
             "halved_single_points": "points lost by the agent"},
            lambda context, swarm, single: context > 1 and swarm < single,
        ),
        _claim(
            arm, "the reward without bonuses rises from the first to the last quarter of PARL's rounds, and the "
            "bonuses are gone at the end",
            {"reward_first": "first", "reward_last": "last", "bonuses_last": "of the bonuses left"},
            lambda first, last, bonuses: last > first and bonuses == 0,
        ),
    ]  # fmt: skip


def _claim(arm: Mapping[str, Any], text: str, names: Mapping[str, str], rule: Callable[..., bool]) -> Claim:
    each = {name: values(arm, name) for name in names}
    told = "; ".join(f"{_by_seed(each[name])} {unit}" for name, unit in names.items() if each[name])
    missing = "".join(f"; seed {seed} did not finish" for seed in arm["missing"])
    holds = rule(*(fmean(seeds.values()) for seeds in each.values())) if all(each.values()) else None
    return Claim(text, holds, f"{told}{missing}".removeprefix("; "))


def _by_seed(seeds: Mapping[str, float]) -> str:
    """``3.10 ± 0.42: 3.00, 3.20``: the mean, its 95% half width, and each seed."""
    shown = list(seeds.values())
    half = half_width(shown)
    return f"{fmean(shown):.2f}{'' if half is None else f' ± {half:.2f}'}: " + ", ".join(f"{v:.2f}" for v in shown)
