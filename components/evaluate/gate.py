"""The promotion gate: declared floors and the untrained model, against the final model's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import MoonflowError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """``decision`` is "promote" if every check passed; ``reasons`` tell what was checked, failures first."""

    decision: Literal["promote", "hold"]
    reasons: list[str]


def parse_floors(text: str) -> dict[str, float]:
    """``"digit_string=0.9, reasoning/image=0.5"`` as a dictionary; raises MoonflowError for anything else."""
    floors: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        try:
            floors[name.strip()] = float(value)
        except ValueError:
            raise MoonflowError(f"evaluate: floors has {part!r}; write suite=value or ability/modality=value") from None
    return floors


def decide(
    rows: Sequence[Row], floors: Mapping[str, float], *, candidate: str, untrained: str, sigmas: float
) -> Verdict:
    """Compare the candidate's rows with the floors and with the untrained model's.

    Args:
        rows: ``{"step", "suite", "ability", "modality", "value", "stderr"}``.
        floors: least value by suite, or by ability/modality as the mean over its suites.
        candidate, untrained: the steps to compare.
        sigmas: a suite fails when it is below the untrained model by more than so many standard errors.

    Raises:
        MoonflowError: a floor names nothing that was evaluated.
    """
    final = {row["suite"]: row for row in rows if row["step"] == candidate}
    before = {row["suite"]: row for row in rows if row["step"] == untrained}
    failed: list[str] = []
    passed: list[str] = []
    for name, floor in floors.items():
        value = _value(final, name)
        (passed if value >= floor else failed).append(f"{name} {value:.2f} {'>=' if value >= floor else '<'} {floor:g}")
    worse = [
        f"{suite} {row['value']:.2f} < {before[suite]['value']:.2f} untrained"
        for suite, row in final.items()
        if suite in before
        and before[suite]["value"] - row["value"] > sigmas * math.hypot(row["stderr"], before[suite]["stderr"])
    ]
    if not worse:
        passed.append("no suite below the untrained model")
    failed += worse
    return Verdict("hold" if failed else "promote", failed + passed)


def _value(final: Mapping[str, Row], name: str) -> float:
    values = [row["value"] for suite, row in final.items() if name in (suite, f"{row['ability']}/{row['modality']}")]
    if not values:
        raise MoonflowError(f"evaluate: floors names {name!r}, which was not evaluated; choose from {', '.join(final)}")
    return float(sum(values) / len(values))
