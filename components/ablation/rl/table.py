"""An RL ablation in words: its tables as Markdown, and one line for each finding (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.ablation.cells import no_result_lines
from components.ablation.rl.arms import ARMS, PAPER, SUITES
from components.ablation.rl.claims import claims
from components.ablation.rl.comparison import AGAINST
from components.ablation.spread import as_text
from components.ablation.tables import Table, document


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Means over suites, every suite, and what the arms gain; arms are the columns."""
    arms = found["arms"]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["rows"]))
    groups = [name for name in names if name not in SUITES]
    compared = list(found["gains"])
    return [
        Table("Means over suites", ["", *arms], [[name, *_cells(arms, name)] for name in groups]),
        Table(
            "Every suite",
            ["suite", "ability", "tasks", "largest standard error", *arms],
            [
                [name, f"{suite.ability}, {suite.modality}", str(found["suites"][name]["n"]),
                 f"{found['suites'][name]['stderr']:.1f}", *_cells(arms, name)]
                for name, suite in SUITES.items()
                if name in names
            ],
        ),
        Table(
            "What is gained",
            ["", *(f"{arm} over {AGAINST[arm]}" for arm in compared), "the paper, by RL on images"],
            [[name, *(_gain(found["gains"][arm].get(name)) for arm in compared), _paper(name)]
             for name in (*groups, *(name for name in SUITES if name in names))],
        ),
    ]  # fmt: skip


def printed(found: Mapping[str, Any]) -> Table:
    """What a terminal shows."""
    return tables(found)[0]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, then the sentences, as Markdown."""
    opening = (
        "Points, 0 to 100, on held-out tasks. ± is the standard deviation over seeds; of a gain, it is the half width "
        "of the 95% interval of its mean over seeds."
    )
    return document(opening, tables(found), sentences(found))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Cells without a result, the arms with their tokens and seeds, then the verdict on each claim."""
    told = []
    for name, arm in found["arms"].items():
        kind = "sampled" if ARMS[name].rl else "read"
        tokens = f"{min(arm['tokens']):,} to {max(arm['tokens']):,} tokens {kind}"
        told.append(f"{name}: {ARMS[name].meaning}; {tokens}; seeds {', '.join(map(str, arm['seeds']))}")
    return [*no_result_lines(found["no_result"]), *told, *map(str, claims(found))]


def _cells(arms: Mapping[str, Any], name: str) -> Iterable[str]:
    return (as_text(arm["rows"][name]) if name in arm["rows"] else "" for arm in arms.values())


def _gain(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    half = "" if cell["half"] is None else f" ± {cell['half']:.1f}"
    return f"{cell['mean']:+.1f}{half}"


def _paper(name: str) -> str:
    if name not in PAPER:
        return ""
    benchmark, points = PAPER[name]
    return f"{points:+.1f} ({benchmark})"
