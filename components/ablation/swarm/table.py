"""A swarm ablation in words: its tables as Markdown, and one line for each finding (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.ablation.cells import no_result_lines
from components.ablation.spread import as_text, spread
from components.ablation.swarm.arms import ARMS
from components.ablation.swarm.claims import claims
from components.ablation.swarm.comparison import BROKEN, values
from components.ablation.tables import Table, document

MEASURES = {
    "f1": ("item-F1", 2), "critical_steps": ("critical steps", 1), "seconds": ("seconds", 2),
    "context_tokens": ("largest context", 0), "delegated": ("delegate", 2),
}  # fmt: skip
"""Measure -> what it is called, and its digits."""
BROKE = {"failed": "episodes that broke", "lost": "with a sub-agent that broke"}
"""What has a column where it is not 0: counts over all seeds."""
OF_ARMS = {
    "f1_gain_points": ("points of F1 over the best single agent", 1), "wide_steps_ratio": ("steps ratio, largest N", 2),
    "wide_seconds_ratio": ("seconds ratio, largest N", 2), "easy_overhead": ("easy overhead", 2),
    "reward_first": ("reward once the bonuses are gone, first half", 3), "reward_last": ("second half", 3),
    "subtasks_last": ("subtasks an episode, last quarter", 2), "finish_last": ("of them finished", 2),
}  # fmt: skip
"""Figure of an arm -> what it is called, and its digits."""
WAYS = {
    "swarm": "swarm", "untrained_swarm": "swarm before PARL", "must_delegate": "must delegate",
    "oracle_split": "oracle split", "single": "one agent", "hide_tool_result": "one agent, results hidden",
    "discard_all": "one agent, starts again", "untrained_single": "one agent before PARL",
    "untrained_hide_tool_result": "one agent before PARL, results hidden",
    "untrained_discard_all": "one agent before PARL, starts again",
}  # fmt: skip


def tables(found: Mapping[str, Any]) -> list[Table]:
    """One table of all arms; then for each arm the ways by number of parts, and again in windows of half the size."""
    made = [Table("The arms", ["arm", *(told for told, _ in OF_ARMS.values())], _of_arms(found))]
    for name, arm in found["arms"].items():
        for key, title in (("table", "by number of parts N"), ("halved", "in windows of half the size")):
            broken = [each for each in BROKEN if any(row[each] for row in arm[key])]
            known = [each for each in MEASURES if any(row[each] for row in arm[key])]
            head = ["way", "N", *(MEASURES[each][0] for each in known), *(BROKE[each] for each in broken)]
            rows = [[*_row(row, known), *(str(row[each]) for each in broken)] for row in arm[key]]
            made.append(Table(f"{name}: {title}", head, rows))
    return [table for table in made if table.rows]


def printed(found: Mapping[str, Any]) -> Table:
    """What a terminal shows."""
    return tables(found)[0]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, then the sentences, as Markdown."""
    opening = (
        "Held-out tasks of the offline world; ± is the standard deviation over seeds. Seconds are of fewer tasks, done "
        "one at a time by the swarm and the best single agent of each seed alone."
    )
    return document(opening, tables(found), sentences(found))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Cells without a result, the arms with their seeds, each seed's gain, then the verdict on each claim."""
    told = []
    for name, arm in found["arms"].items():
        gains = ", ".join(f"{seed}: {gain:+.1f}" for seed, gain in values(arm, "f1_gain_points").items())
        gained = f"; points of F1 over the best single agent by seed {gains}" if gains else ""
        told.append(f"{name}: {ARMS[name].meaning}{gained}")
    return [*no_result_lines(found["no_result"]), *told, *map(str, claims(found))]


def _of_arms(found: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, arm in found["arms"].items():
        each = {figure: list(values(arm, figure).values()) for figure in OF_ARMS}
        rows.append([name, *(_cell(spread(v) if v else None, OF_ARMS[figure][1]) for figure, v in each.items())])
    return rows


def _row(row: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    cells = [_cell(row[measure], MEASURES[measure][1]) for measure in measures]
    return [WAYS[row["way"]], str(row["size"]), *cells]


def _cell(value: Mapping[str, Any] | None, digits: int) -> str:
    return "" if value is None else as_text(value, digits)
