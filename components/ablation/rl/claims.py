"""What an RL ablation says about the claims (source: K2.5 paper, visual RL, RFT and joint RL; the rules are ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from components.ablation.claim import Claim, by_seed, with_unfinished
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
        _above("RL on images alone lifts text, in the mean over the suites", visual.get(TEXT)),
        *(
            _above(f"it lifts {suite} (the paper: {benchmark} {points:+.1f})", visual.get(suite))
            for suite, (benchmark, points) in PAPER.items()
        ),
        _tuning(tuned, found["arms"]),
        *(_joint(ability, joint) for ability in ABILITIES),
    ]
    return with_unfinished(verdicts, found["arms"])


def _vision(gains: Gains, found: Mapping[str, Any]) -> Claim:
    """One seed that gains less refutes it; it takes two or more, and all that were begun, to show it."""
    text = f"RL on images raises held-out tasks of its families by {RISE:g} points or more in each seed"
    if TRAINED not in gains:
        return Claim(text, None, "")
    each = ", ".join(f"{suite} {gains[suite]['mean']:+.1f}" for suite in IMAGES if suite in gains)
    told = f"{by_seed(gains[TRAINED])}; by suite {each}"
    if rewards := found["rewards"].get(VISUAL):
        first, last = (fmean(pair[end] for pair in rewards.values()) for end in (0, 1))
        told += f"; reward in training from {first:.2f} to {last:.2f}"
    seeds = gains[TRAINED]["seeds"].values()
    shown = len(seeds) > 1 and not any(found["arms"][name]["missing"] for name in (BEFORE, VISUAL))
    return Claim(text, (shown or None) if min(seeds) >= RISE else False, told)


def _above(text: str, gain: Mapping[str, Any] | None) -> Claim:
    """Whether a gain's interval lies above 0; one seed has no interval."""
    if gain is None:
        return Claim(text, None, "")
    return Claim(text, None if gain["half"] is None else gain["mean"] > gain["half"], by_seed(gain))


def _joint(ability: str, gains: Gains) -> Claim:
    claim = _above(f"joint RL after RFT lifts {ability}", gains.get(ability))
    kinds = [f"{kind} {by_seed(gains[row])}" for kind in MODALITIES if (row := f"{ability}, {kind}") in gains]
    return replace(claim, figures="; ".join(filter(None, [claim.figures, *kinds])))


def _tuning(gains: Gains, arms: Mapping[str, Any]) -> Claim:
    text = "RFT on the successes beats as much more SFT, on the families of visual RL"
    if TRAINED not in gains:
        return Claim(text, None, "")
    spent = [dict(zip(arms[name]["seeds"], arms[name]["tokens"], strict=True)) for name in (RFT, MORE)]
    pairs = [(spent[0][int(seed)], spent[1][int(seed)]) for seed in gains[TRAINED]["seeds"]]
    claim = _above(text, gains[TRAINED])
    told = f"{claim.figures}; text {by_seed(gains[TEXT])}" if TEXT in gains else claim.figures
    if any(tuned == 0 for tuned, _ in pairs):
        return Claim(text, None, f"{told}; a seed had no success to learn from")
    told += "; {:,.0f} and {:,.0f} tokens".format(*map(fmean, zip(*pairs, strict=True)))
    if any(abs(tuned - more) > SAME * more for tuned, more in pairs):
        return Claim(text, None, f"{told}, which are not as many in each seed")
    return Claim(text, claim.holds, told)
