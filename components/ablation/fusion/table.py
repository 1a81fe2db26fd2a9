"""A fusion ablation in words: our table next to the paper's, as Markdown, and one line for each finding (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.ablation.cells import no_result_lines
from components.ablation.fusion.arms import ARMS, COLUMNS
from components.ablation.fusion.comparison import MEASURES, chance, verdict
from components.ablation.spread import as_text
from components.ablation.tables import Table

DIGITS = {"score": 1, "loss": 3}


@dataclass(frozen=True)
class ArmRow:
    """One row of the table of a measure.

    Attributes:
        name: an arm, "early minus" another arm, or "best constant answer".
        source: whose figures these are; "" if they can only be ours.
        schedule: share of training after which vision begins, and its ratio to text; empty if the row is not an arm.
        cells: one text for each of ``COLUMNS``.
        verdicts: ``comparison.verdict`` of each cell, if the row is one of our differences; else empty.
    """

    name: str
    source: str
    schedule: tuple[str, str]
    cells: Sequence[str]
    verdicts: Sequence[str] = ()

    @property
    def ours(self) -> bool:
        """Whether we measured it; the paper's row follows the row of ours that it is compared with."""
        return not self.source.startswith("K2.5")


def rows(found: Mapping[str, Any], measure: str) -> list[ArmRow]:
    """The table of ``measure``, a key of ``MEASURES``. In the table of scores, the paper's row follows each of ours."""
    made = []
    paper = measure == "score"  # Table 1 has no losses
    for name, arm in found["arms"].items():
        schedule = (f"{arm['vision_start']:.0%}", arm["ratio"])
        columns = [arm["columns"][column.name] for column in COLUMNS]
        made.append(ArmRow(name, "ours", schedule, [_value(column[measure], measure) for column in columns]))
        if paper:
            made.append(ArmRow(name, "K2.5 Table 1", schedule, [f"{column['paper']:.1f}" for column in columns]))
    if paper:
        made.append(ArmRow("best constant answer", "", ("", ""), [f"{value:.1f}" for value in chance(found)]))
    for name, differences in found["differences"].items():
        label, columns = f"early minus {name}", [differences[column.name][measure] for column in COLUMNS]
        cells = [_difference(column, measure) for column in columns]
        made.append(ArmRow(label, "ours (95%)", ("", ""), cells, [verdict(column, measure) for column in columns]))
        if paper:
            gaps = [f"{ARMS['early'].paper[c.name] - ARMS[name].paper[c.name]:+.1f}" for c in COLUMNS]
            made.append(ArmRow(label, "K2.5", ("", ""), gaps))
    return made


def printed(found: Mapping[str, Any]) -> Table:
    """What a terminal shows: scores of the arms next to the paper's, a row per ability."""
    arms = found["arms"]
    rows = []
    for column in COLUMNS:
        cells = [arm["columns"][column.name] for arm in arms.values()]
        rows.append([column.name, *(f"{_value(cell['score'], 'score')}, {cell['paper']:.1f}" for cell in cells)])
    head = ["ability", *(f"{name} {arm['ratio']}" for name, arm in arms.items())]
    return Table("score, 0 to 100: ours (sd over seeds), K2.5", head, rows)


def markdown(found: Mapping[str, Any]) -> str:
    """Our table next to the paper's, as Markdown."""
    lines = []
    for measure, meaning in MEASURES.items():
        lines += [f"**{meaning[0].upper()}{meaning[1:]}**; ± is the standard deviation over seeds.", ""]
        head = ["arm", "vision from", "vision : text", *(column.name for column in COLUMNS)]
        names = ((", ".join(filter(None, (row.name, row.source))), row) for row in rows(found, measure))
        cells = [[name, *row.schedule, *row.cells] for name, row in names]
        lines += [*Table(meaning, head, cells).markdown(), ""]
    lines += [f"- {line}" for line in sentences(found)]
    return "\n".join(lines) + "\n"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Cells without a result, the suites of every column, the tokens of every arm, and the findings, one line each."""
    lines = no_result_lines(found["no_result"])
    lines += [f"{c.name}: score of {', '.join(c.suites)}; loss of {', '.join(c.families)}" for c in COLUMNS]
    for name, arm in found["arms"].items():
        vision, text = (sorted(arm["tokens"][kind]) for kind in ("vision", "text"))
        shares = [v / (v + t) for v, t in zip(arm["tokens"]["vision"], arm["tokens"]["text"], strict=True)]
        bits = ", ".join(f"{family} {spread['mean']:.3f}" for family, spread in arm["bits_per_byte"].items())
        lines.append(
            f"{name}: {_span(vision)} vision and {_span(text)} text tokens, a vision share of {min(shares):.4f} to "
            f"{max(shares):.4f}; bits a byte: {bits}"
        )
    for name, dips in found["dips"].items():
        known = [dip for dip in dips if dip["rise"] is not None]
        if known:
            rises = ", ".join(f"{dip['rise']:+.3f}" for dip in known)
            back = ", ".join("never" if d["recovered"] is None else f"{d['recovered']:.0%}" for d in known)
            lines.append(
                f"{name}: after vision began, the held-out text loss rose at most by {rises} nats above its last value "
                f"before (below 0: it only fell), and was back at that value by this share of the training: {back}"
            )
    for name, columns in found["differences"].items():
        for measure in MEASURES:
            verdicts = {column.name: verdict(columns[column.name][measure], measure) for column in COLUMNS}
            for said in dict.fromkeys(verdicts.values()):
                chosen = [column for column, each in verdicts.items() if each == said]
                lines.append(f"early against {name}, {measure} of {', '.join(chosen)}: {said}")
    return lines


def _value(found: Mapping[str, Any], measure: str) -> str:
    return as_text(found, DIGITS[measure])


def _difference(found: Mapping[str, Any], measure: str) -> str:
    digits = DIGITS[measure]
    if found["mean"] is None:
        return ""
    half = "" if found["half"] is None else f" ± {found['half']:.{digits}f}"
    return f"{found['mean']:+.{digits}f}{half}"


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
