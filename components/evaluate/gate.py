"""The promotion gate: declared rules over the candidate's scores, and the decision with all its evidence.

A rule compares an observed value with a bound. A floor applies to the value itself. A comparison with another model
applies to the difference: a suite fails only if the upper end of the difference's confidence interval is below the
bound, so that a loss within the noise does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.runtime.steps import IMPORTED
from model.boundary.errors import MoonflowError
from model.evals.completion import BEYOND
from model.evals.suites import SUITES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """What the gate asks for.

    Attributes:
        floors: least value by suite, by ability/modality as the mean over its suites, or by a family of several suites
            as the best of them.
        sigmas: half the width of the confidence intervals, in standard errors.
        margin: loss of score that is allowed against the champion, and against the imported checkpoint that training
            started from.
        well_formed: least share of episodes that end with a readable answer.
    """

    floors: Mapping[str, float]
    sigmas: float
    margin: float
    well_formed: float


@dataclass(frozen=True)
class Champion:
    """The model in service: what it is called, and its rows of the evaluation that let it through."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class GateCheck:
    """One rule applied: passed if ``judged`` is at least ``bound``.

    ``judged`` is the observed value for a floor, the interval's upper end for a comparison.
    """

    rule: Literal["floor", "untrained", "imported", "champion", "well_formed"]
    subject: str
    observed: float
    interval: tuple[float, float]
    bound: float
    judged: float
    text: str

    @property
    def passed(self) -> bool:
        return self.judged >= self.bound

    def as_evidence(self) -> dict[str, Any]:
        """The check in JSON's terms."""
        return {
            "rule": self.rule,
            "subject": self.subject,
            "observed": round(self.observed, 6),
            "interval": [round(end, 6) for end in self.interval],
            "bound": self.bound,
            "passed": self.passed,
            "reason": self.text,
        }


@dataclass(frozen=True)
class Verdict:
    """``decision`` is "promote" if every check passed; ``reasons`` name what was checked, failures first."""

    decision: Literal["promote", "hold"]
    reasons: list[str]
    checks: list[GateCheck]


def decide(
    rows: Sequence[Row],
    rules: Rules,
    *,
    candidate: str,
    start: str,
    well_formed: tuple[float, int],
    champion: Champion | None,
) -> Verdict:
    """Apply the rules to the candidate's rows.

    Args:
        rows: ``{"step", "suite", "ability", "modality", "value", "stderr", "n"}``.
        candidate, start: the steps to compare: the candidate may lose nothing against the untrained model, and the
            margin against an imported checkpoint.
        well_formed: share of the candidate's episodes that end with a readable answer, and how many there were.
        champion: the model in service; None before the first promotion.

    Raises:
        MoonflowError: a floor names nothing that was evaluated.
    """
    final = {row["suite"]: row for row in rows if row["step"] == candidate}
    before = [row for row in rows if row["step"] == start]
    first: Literal["untrained", "imported"] = "imported" if start == IMPORTED else "untrained"
    checks = [_floor(final, name, floor, rules.sigmas) for name, floor in rules.floors.items()]
    lost = rules.margin if first == "imported" else 0.0
    checks += _compared(first, first, final, before, -lost, rules.sigmas)
    if champion is not None:
        checks += _compared("champion", champion.name, final, champion.rows, -rules.margin, rules.sigmas)
    checks.append(_readable(*well_formed, rules.well_formed, rules.sigmas))
    failed = [check.text for check in checks if not check.passed]
    passed = [check.text for check in checks if check.passed and check.rule in ("floor", "well_formed")]
    told = {"untrained": "the untrained model", "imported": "the imported checkpoint"}
    compared = {first: told[first]} | ({"champion": champion.name} if champion else {})
    for rule, name in compared.items():
        if all(check.passed for check in checks if check.rule == rule):
            passed.append(f"no suite below {name}")
    if champion is None:
        passed.append("no champion to compare with")
    return Verdict("hold" if failed else "promote", failed + passed, checks)


def near_floors(rows: Sequence[Row], rules: Rules, candidate: str) -> list[str]:
    """The candidate's suites that decide a floor which lies within the confidence interval of what is judged.

    Of a family, that is the suite that is its best so far; of an ability, each of its suites.

    Raises:
        MoonflowError: a floor names nothing that was evaluated.
    """
    final = {row["suite"]: row for row in rows if row["step"] == candidate}
    found: dict[str, None] = {}
    for name, floor in rules.floors.items():
        low, high = _floor(final, name, floor, rules.sigmas).interval
        if low <= floor <= high and floor > 0:  # every score reaches 0
            found |= dict.fromkeys(row["suite"] for row in _judged_by(final, name))
    return list(found)


def well_formed(scores: Mapping[str, Mapping[str, Any]], asked: Mapping[str, int]) -> tuple[float, int]:
    """Share of the episodes that ended with a readable answer, and their number.

    Documents that are longer than the model's context were not shown to it, and do not count.

    Args:
        scores: suite -> its `model.evals.score.Score` in JSON's terms.
        asked: suite -> tasks that it has at most in this share. Which suites get more tasks depends on their floors,
            and must not change what another rule sees.
    """
    weights = {name: min(score["n"], asked[name]) for name, score in scores.items()}
    beyond = sum(weights[name] * score["figures"].get(BEYOND, 0.0) for name, score in scores.items())
    count = sum(weights.values()) - round(beyond)
    return sum(score["answered"] * weights[name] for name, score in scores.items()) / count, count


def _floor(final: Mapping[str, Row], name: str, floor: float, sigmas: float) -> GateCheck:
    if not (chosen := _judged_by(final, name)):
        # A user's task that broke: nothing shows that the model reaches its floor.
        return GateCheck("floor", name, 0.0, (0.0, 1.0), floor, 0.0, f"{name} was not evaluated, and has a floor")
    value = sum(row["value"] for row in chosen) / len(chosen)
    half = sigmas * math.hypot(*(_stderr(row) for row in chosen)) / len(chosen)
    text = f"{name} {value:.2f} {'>=' if value >= floor else '<'} {floor:g}"
    return GateCheck("floor", name, value, (value - half, value + half), floor, value, text)


def _judged_by(final: Mapping[str, Row], name: str) -> list[Row]:
    """The rows whose mean a floor is compared with; none if it names a user's task that was not evaluated."""
    if chosen := [row for suite, row in final.items() if name in (suite, f"{row['ability']}/{row['modality']}")]:
        return chosen
    # A family that is run in several ways: the best of them counts.
    if ways := [row for suite, row in final.items() if suite in SUITES and SUITES[suite].family == name]:
        return [max(ways, key=lambda row: float(row["value"]))]
    if "/" not in name and name not in {*SUITES, *(suite.family for suite in SUITES.values())}:
        return []
    raise MoonflowError(f"evaluate: floors names {name!r}, which was not evaluated; choose from {', '.join(final)}")


def _compared(
    rule: Literal["untrained", "imported", "champion"], other: str, final: Mapping[str, Row], theirs: Sequence[Row],
    bound: float, sigmas: float,
) -> list[GateCheck]:  # fmt: skip
    """The differences to another model, in the suites that both have."""
    checks = []
    for row in theirs:
        if (ours := final.get(row["suite"])) is None:
            continue
        difference = ours["value"] - row["value"]
        half = sigmas * math.hypot(_stderr(ours), _stderr(row))
        upper = difference + half
        sign = ">=" if upper >= bound else "<"
        allowed = f" - {-bound:g}" if bound else ""
        text = f"{row['suite']} {ours['value']:.2f} {sign} {row['value']:.2f} {other}{allowed} (± {half:.2f})"
        checks.append(GateCheck(rule, row["suite"], difference, (difference - half, upper), bound, upper, text))
    return checks


def _readable(share: float, count: int, floor: float, sigmas: float) -> GateCheck:
    half = sigmas * math.sqrt(share * (1 - share) / count)
    text = f"well-formed answers {share:.2f} {'>=' if share >= floor else '<'} {floor:g}"
    return GateCheck("well_formed", "all suites", share, (share - half, share + half), floor, share, text)


def _stderr(row: Row) -> float:
    """Standard error of a row.

    If all tasks scored alike it would be 0. Then four tasks are added, two of them right (source: Agresti and Coull
    1998).
    """
    if row["stderr"] > 0:
        return float(row["stderr"])
    n = row["n"] + 4
    share = (row["value"] * row["n"] + 2) / n
    return math.sqrt(share * (1 - share) / n)
