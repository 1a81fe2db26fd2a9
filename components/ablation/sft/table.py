"""An SFT ablation in words: its tables as Markdown, and one line for each finding (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.ablation.cells import no_result_lines
from components.ablation.sft.arms import ARMS, TWINS, VISION
from components.ablation.sft.claims import claims
from components.ablation.sft.comparison import GROUPS, vision_rows
from components.ablation.spread import as_text
from components.ablation.tables import Table, document

MEASURES = {"success": "success", "tool_calls": "tool-call rate"}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Tool use on images, the same by kind of image program, and vision without tools; arms are the columns."""
    arms = found["arms"]
    names = [name for arm in arms.values() for name in arm["rows"]]
    kinds = list(dict.fromkeys(name for name in names if name.startswith("kind/")))
    head = [f"{arm}, {told}" for arm in arms for told in MEASURES.values()]
    tool_use = [name for name in (TWINS[0], *GROUPS, *TWINS[1:]) if name in names]
    vision = [[VISION[suite], suite, *(_cell(arm, suite, "success") for arm in arms.values())]
              for suite in vision_rows(found)]  # fmt: skip
    return [
        Table("Tool use on images", ["", *head], [[_label(name), *_cells(arms, name)] for name in tool_use]),
        Table(
            "Image programs by kind",
            ["kind", "tasks", *head],
            [[_kind(name, found), _tasks(arms, name), *_cells(arms, name)] for name in kinds],
        ),
        Table("Vision without tools", ["", "suite", *arms], vision),
    ]


def printed(found: Mapping[str, Any]) -> Table:
    """What a terminal shows."""
    return tables(found)[0]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, then the sentences, as Markdown."""
    opening = "Points, 0 to 100, on held-out tasks; ± is the standard deviation over seeds."
    return document(opening, tables(found), sentences(found))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Cells without a result, the arms with their tokens and seeds, then the verdict on each claim."""
    told = []
    for name, arm in found["arms"].items():
        spent = f"{min(arm['tokens']):,} to {max(arm['tokens']):,} tokens" if ARMS[name].trained else "no training"
        told.append(f"{name}: {ARMS[name].meaning}; {spent}; seeds {', '.join(map(str, arm['seeds']))}")
    return [*no_result_lines(found["no_result"]), *told, *map(str, claims(found))]


def _label(name: str) -> str:
    return f"{TWINS[0]}: {name}" if name in GROUPS else name


def _kind(name: str, found: Mapping[str, Any]) -> str:
    kind = name.removeprefix("kind/")
    return f"{kind} (untrained)" if kind in found["untrained"] else kind


def _tasks(arms: Mapping[str, Any], name: str) -> str:
    return str(next(arm["rows"][name]["n"] for arm in arms.values() if name in arm["rows"]))


def _cells(arms: Mapping[str, Any], name: str) -> list[str]:
    return [_cell(arm, name, measure) for arm in arms.values() for measure in MEASURES]


def _cell(arm: Mapping[str, Any], name: str, measure: str) -> str:
    if name not in arm["rows"]:
        return ""
    return as_text(arm["rows"][name][measure])
