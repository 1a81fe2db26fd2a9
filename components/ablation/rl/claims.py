"""What an RL ablation says about the claims (source: K2.5 paper, visual RL, RFT and joint RL; the rules are ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from components.ablation.claim import Claim, by_seed
from components.ablation.rl.arms import IMAGES, JOINT, MORE, PAPER, RFT, VISUAL
from components.ablation.rl.comparison import TEXT, TRAINED
from model.data.samples.sample import ABILITIES

RISE = 10.0  # points that each seed has to gain on the families of visual RL

Gains = Mapping[str, Mapping[str, Any]]


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    visual, tuned, joint = (found["gains"].get(name, {}) for name in (VISUAL, RFT, JOINT))
    lost = "".join(
        f"; {name}: seed {seed} did not finish" for name, arm in found["arms"].items() for seed in arm["missing"]
    )
    verdicts = [
        _vision(visual, found["rewards"].get(VISUAL, {})),
        _above("RL on images alone lifts text, in the mean over the suites", visual.get(TEXT)),
        *(
            _above(f"it lifts {suite} (the paper: {benchmark} {points:+.1f})", visual.get(suite))
            for suite, (benchmark, points) in PAPER.items()
        ),
        _tuning(tuned, found["arms"]),
        *(_above(f"joint RL after RFT lifts {ability}", joint.get(ability)) for ability in ABILITIES),
    ]
    return [replace(claim, figures=f"{claim.figures}{lost}".removeprefix("; ")) for claim in verdicts]


def _vision(gains: Gains, rewards: Mapping[str, Any]) -> Claim:
    text = f"RL on images raises held-out tasks of its families by {RISE:g} points or more in each seed"
    if TRAINED not in gains:
        return Claim(text, None, "")
    each = ", ".join(f"{suite} {gains[suite]['mean']:+.1f}" for suite in IMAGES if suite in gains)
    told = f"{by_seed(gains[TRAINED])}; by suite {each}"
    if rewards:
        first, last = (fmean(pair[end] for pair in rewards.values()) for end in (0, 1))
        told += f"; reward in training from {first:.2f} to {last:.2f}"
    return Claim(text, min(gains[TRAINED]["seeds"].values()) >= RISE, told)


def _above(text: str, gain: Mapping[str, Any] | None) -> Claim:
    """Whether a gain's interval lies above 0; one seed has no interval."""
    if gain is None:
        return Claim(text, None, "")
    return Claim(text, None if gain["half"] is None else gain["mean"] > gain["half"], by_seed(gain))


def _tuning(gains: Gains, arms: Mapping[str, Any]) -> Claim:
    text = "RFT on the successes beats as much more SFT, on the families of visual RL"
    if TRAINED not in gains:
        return Claim(text, None, "")
    spent = [arms[name]["tokens"] for name in (RFT, MORE)]
    claim = _above(text, gains[TRAINED])
    told = f"{claim.figures}; text {by_seed(gains[TEXT])}" if TEXT in gains else claim.figures
    if 0 in spent[0]:
        return Claim(text, None, f"{told}; a seed had no success to learn from")
    tokens = " and ".join(f"{fmean(each):,.0f}" for each in spent)
    return Claim(text, claim.holds, f"{told}; {tokens} tokens")
