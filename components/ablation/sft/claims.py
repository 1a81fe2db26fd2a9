"""What an SFT ablation says about the claims: the rule of each claim, whether it held, and the figures in words (ours).

Claims 1 to 3 are about text-only SFT; claim 4 is the paper's counter-example (section 2.2: visual trajectories made by
hand at this stage hurt generalisation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from components.ablation.claim import Claim, above_zero, by_seed, in_each_seed, with_no_result
from components.ablation.sft.arms import TEXT, TWINS, VISION
from components.ablation.sft.comparison import UNTRAINED, vision_rows

RISE = 20.0  # points of success that each seed has to gain
WEAR = 3.0  # points that a suite of vision may lose, in the mean over seeds

Cell = Mapping[str, Any]


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    gains, no_result = found["gains"].get(TEXT, {}), found["no_result"]
    verdicts = [
        *(_rises(suite, gains.get(suite, {}), no_result) for suite in TWINS),
        _untrained(gains, found["untrained"], no_result),
        *_wear(found, gains),
        _narrow(found["differences"]),
    ]
    return with_no_result(verdicts, no_result)


def _rises(suite: str, row: Mapping[str, Cell], no_result: Sequence[str]) -> Claim:
    text = f"text-only SFT raises success on {suite} by {RISE:g} points or more in each seed"
    if not row:
        return Claim(text)
    success, calls = row["success"], row["tool_calls"]
    seeds = success["seeds"].values()
    met = in_each_seed(min(seeds) >= RISE, (TEXT,), no_result)
    return Claim(text, len(seeds), met, f"success {by_seed(success)}; tool-call rate {by_seed(calls)}")


def _untrained(gains: Mapping[str, Any], kinds: list[str], no_result: Sequence[str]) -> Claim:
    text = f"kinds that no trajectory shows ({', '.join(kinds)}) gain too, in each seed"
    if UNTRAINED not in gains:
        return Claim(text)
    success = gains[UNTRAINED]["success"]
    each = ", ".join(f"{k} {gains[f'kind/{k}']['success']['mean']:+.1f}" for k in kinds if f"kind/{k}" in gains)
    seeds = success["seeds"].values()
    met = in_each_seed(min(seeds) > 0, (TEXT,), no_result)
    return Claim(text, len(seeds), met, f"together {by_seed(success)}; by kind {each}")


def _wear(found: Mapping[str, Any], gains: Mapping[str, Any]) -> Iterator[Claim]:
    for suite in vision_rows(found):
        text = f"{VISION[suite]} ({suite}) lose at most {WEAR:g} points in text-only SFT, in the mean over seeds"
        if suite not in gains:
            yield Claim(text)
            continue
        success = gains[suite]["success"]
        yield Claim(text, len(success["seeds"]), success["mean"] >= -WEAR, by_seed(success))


def _narrow(differences: Mapping[str, Any]) -> Claim:
    text = "text-only SFT generalises better than with hand-made visual trajectories, at equal tokens"
    if UNTRAINED not in differences:
        return Claim(text)
    untrained, whole = differences[UNTRAINED]["success"], differences[TWINS[0]]["success"]
    told = f"success on untrained kinds, text minus narrow: {by_seed(untrained)}; on all kinds: {by_seed(whole)}"
    return replace(above_zero(text, untrained), figures=told)
