"""A Toggle ablation in words: its tables as Markdown, and one line for each finding (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.ablation.cells import no_result_lines
from components.ablation.spread import as_text
from components.ablation.tables import Table, document
from components.ablation.toggle.arms import ARMS, FAMILIES, LARGER
from components.ablation.toggle.claims import claims


def tables(found: Mapping[str, Any]) -> list[Table]:
    """One table for each family; arms are the rows."""
    budget = found["budget"]
    head = ["arm", f"accuracy, {LARGER * budget} tokens", f"accuracy, {budget} tokens", "tokens of an answer",
            "tokens saved, %"]  # fmt: skip
    return [
        Table(f"{family}, {told}", head, [_row(found, name, family) for name in found["arms"]])
        for family, told in FAMILIES.items()
    ]


def _row(found: Mapping[str, Any], name: str, family: str) -> list[str]:
    cells = found["arms"][name]["families"][family]
    saved = found["against_free"].get(name, {}).get(family)
    return [name, *(as_text(cells[measure]) for measure in ("accuracy", "at_budget", "tokens")),
            f"{saved['saved']['mean']:.1f}" if saved else ""]  # fmt: skip


def printed(found: Mapping[str, Any]) -> Table:
    """What a terminal shows."""
    return tables(found)[0]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, then the sentences, as Markdown."""
    opening = "Points, 0 to 100, and tokens, on held-out tasks; ± is the standard deviation over seeds."
    return document(opening, tables(found), sentences(found))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Cells without a result, the arms with their seeds, then the verdict on each claim."""
    told = [
        f"{name}: {ARMS[name].meaning}; seeds {', '.join(map(str, arm['seeds']))}"
        for name, arm in found["arms"].items()
    ]
    return [*no_result_lines(found["no_result"]), *told, *map(str, claims(found))]
