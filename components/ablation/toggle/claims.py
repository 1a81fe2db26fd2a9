"""What a Toggle ablation says about the claims (source: K2.5 paper, Toggle; the bound of accuracy is ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.ablation.claim import Claim, by_seed, with_no_result
from components.ablation.toggle.arms import BUDGET, LARGER, TOGGLE, TRAINED_ON, TRANSFER

SAVED = 25.0  # per cent of the output tokens (source: K2.5 paper, 25% to 30%)
PRICE = 1.0  # points of accuracy that this may cost


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    toggle, budget = (found["against_free"].get(name, {}) for name in (TOGGLE, BUDGET))
    verdicts = [
        _saves(f"Toggle saves {SAVED:g}% of the tokens or more, at {PRICE:g} point of accuracy or less",
               toggle.get(TRAINED_ON), SAVED),
        _rigid(found["budget"], toggle.get(TRAINED_ON), budget.get(TRAINED_ON)),
        _saves("it transfers: on a family that RL did not train on, Toggle saves tokens, at "
               f"{PRICE:g} point or less", toggle.get(TRANSFER), 0.0),
    ]  # fmt: skip
    return with_no_result(verdicts, found["no_result"])


def _saves(text: str, row: Mapping[str, Any] | None, least: float) -> Claim:
    if row is None:
        return Claim(text)
    saved, accuracy = row["saved"], row["accuracy"]
    enough = saved["mean"] >= least and saved["mean"] > 0
    told = f"per cent of the tokens saved {by_seed(saved)}; points of accuracy {by_seed(accuracy)}"
    return Claim(text, len(saved["seeds"]), enough and accuracy["mean"] >= -PRICE, told)


def _rigid(tokens: int, toggle: Mapping[str, Any] | None, budget: Mapping[str, Any] | None) -> Claim:
    text = (
        f"with room for {LARGER * tokens} tokens instead of {tokens}, Toggle loses at most {PRICE:g} point, and RL "
        "under budgets in every round more"
    )
    if toggle is None or budget is None:
        return Claim(text)
    loses = budget["accuracy"]["mean"] < -PRICE
    keeps = toggle["accuracy"]["mean"] >= -PRICE
    told = f"points against free: Toggle {by_seed(toggle['accuracy'])}; always {by_seed(budget['accuracy'])}"
    seeds = min(len(row["accuracy"]["seeds"]) for row in (toggle, budget))
    return Claim(text, seeds, loses and keeps, told)
