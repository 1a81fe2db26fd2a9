"""What an RL ablation says about the claims (source: K2.5 paper, visual RL, RFT and joint RL; the rules are ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from components.ablation.claim import Claim, above_zero, by_seed, in_each_seed, with_no_result
from components.ablation.rl.arms import BEFORE, IMAGES, JOINT, MORE, PAPER, RFT, VISUAL
from components.ablation.rl.comparison import TEXT, TRAINED
from model.data.samples.sample import ABILITIES, MODALITIES

RISE = 10.0  # points that each seed has to gain on the families of visual RL
SAME = 0.05  # share by which the tokens of rft and more_sft may differ: rows are not filled to the last token

Gains = Mapping[str, Mapping[str, Any]]


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    visual, tuned, joint = (found["gains"].get(name, {}) for name in (VISUAL, RFT, JOINT))
    verdicts = [
        _vision(visual, found),
        above_zero("RL on images alone lifts text, in the mean over the suites", visual.get(TEXT)),
        *(
            above_zero(f"it lifts {suite} (the paper: {benchmark} {points:+.1f})", visual.get(suite))
            for suite, (benchmark, points) in PAPER.items()
        ),
        _tuning(tuned, found["arms"]),
        *(_joint(ability, joint) for ability in ABILITIES),
    ]
    return with_no_result(verdicts, found["no_result"])


def _vision(gains: Gains, found: Mapping[str, Any]) -> Claim:
    text = f"RL on images raises held-out tasks of its families by {RISE:g} points or more in each seed"
    if TRAINED not in gains:
        return Claim(text)
    each = ", ".join(f"{suite} {gains[suite]['mean']:+.1f}" for suite in IMAGES if suite in gains)
    told = f"{by_seed(gains[TRAINED])}; by suite {each}"
    if rewards := found["rewards"].get(VISUAL):
        first, last = (fmean(pair[end] for pair in rewards.values()) for end in (0, 1))
        told += f"; reward in training from {first:.2f} to {last:.2f}"
    seeds = gains[TRAINED]["seeds"].values()
    met = in_each_seed(min(seeds) >= RISE, (BEFORE, VISUAL), found["no_result"])
    return Claim(text, len(seeds), met, told)


def _joint(ability: str, gains: Gains) -> Claim:
    claim = above_zero(f"joint RL after RFT lifts {ability}", gains.get(ability))
    kinds = [f"{kind} {by_seed(gains[row])}" for kind in MODALITIES if (row := f"{ability}, {kind}") in gains]
    return replace(claim, figures="; ".join(filter(None, [claim.figures, *kinds])))


def _tuning(gains: Gains, arms: Mapping[str, Any]) -> Claim:
    text = "RFT on the successes beats as much more SFT, on the families of visual RL"
    if TRAINED not in gains:
        return Claim(text)
    spent = [dict(zip(arms[name]["seeds"], arms[name]["tokens"], strict=True)) for name in (RFT, MORE)]
    pairs = [(spent[0][int(seed)], spent[1][int(seed)]) for seed in gains[TRAINED]["seeds"]]
    claim = above_zero(text, gains[TRAINED])
    told = f"{claim.figures}; text {by_seed(gains[TEXT])}" if TEXT in gains else claim.figures
    if any(tuned == 0 for tuned, _ in pairs):
        return replace(claim, met=None, figures=f"{told}; a seed had no success to learn from")
    told += "; {:,.0f} and {:,.0f} tokens".format(*map(fmean, zip(*pairs, strict=True)))
    if any(abs(tuned - more) > SAME * more for tuned, more in pairs):
        return replace(claim, met=None, figures=f"{told}, which are not as many in each seed")
    return replace(claim, figures=told)
