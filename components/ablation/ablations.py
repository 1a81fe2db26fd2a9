"""The ablations by the name that the results of their arms have: how their arms compare, in figures and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.ablation import fusion, rl, sft, swarm, toggle
from components.ablation.curves import Events
from components.ablation.fusion import comparison as fusion_comparison
from components.ablation.fusion import page as fusion_page
from components.ablation.fusion import table as fusion_table
from components.ablation.rl import comparison as rl_comparison
from components.ablation.rl import page as rl_page
from components.ablation.rl import table as rl_table
from components.ablation.sft import comparison as sft_comparison
from components.ablation.sft import page as sft_page
from components.ablation.sft import table as sft_table
from components.ablation.swarm import comparison as swarm_comparison
from components.ablation.swarm import page as swarm_page
from components.ablation.swarm import table as swarm_table
from components.ablation.tables import Table
from components.ablation.toggle import comparison as toggle_comparison
from components.ablation.toggle import page as toggle_page
from components.ablation.toggle import table as toggle_table
from model.boundary.errors import MoonflowError

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """What the end of a run asks of an ablation.

    Attributes:
        compare: (``extra["ablation"]`` of each finished arm and seed, task -> rows of its ``metrics.jsonl``, the cells
            that the run should have) -> the arms side by side, in JSON's terms, and the cells without a result,
            ``no_result``.
        printed: of what ``compare`` found: the table for a terminal.
        sentences: of what was found: one line for each finding.
        markdown: of what was found: the tables, then a line for each finding.
        render: (what was found, events, ``run_id``, ``error`` and ``warnings``) -> the page.
        metrics: of what was found: the figures for MLflow.
    """

    compare: Callable[[Sequence[Mapping[str, Any]], Events, Sequence[str]], dict[str, Any]]
    printed: Callable[[Found], Table]
    sentences: Callable[[Found], list[str]]
    markdown: Callable[[Found], str]
    render: Callable[[Found, Events, Mapping[str, Any]], str]
    metrics: Callable[[Found], dict[str, float]]


ABLATIONS = {
    fusion.NAME: Ablation(
        fusion_comparison.compare, fusion_table.printed, fusion_table.sentences, fusion_table.markdown,
        fusion_page.render, fusion_comparison.metrics,
    ),
    sft.NAME: Ablation(
        sft_comparison.compare, sft_table.printed, sft_table.sentences, sft_table.markdown, sft_page.render,
        sft_comparison.metrics,
    ),
    toggle.NAME: Ablation(
        toggle_comparison.compare, toggle_table.printed, toggle_table.sentences, toggle_table.markdown,
        toggle_page.render, toggle_comparison.metrics,
    ),
    rl.NAME: Ablation(
        rl_comparison.compare, rl_table.printed, rl_table.sentences, rl_table.markdown, rl_page.render,
        rl_comparison.metrics,
    ),
    swarm.NAME: Ablation(
        swarm_comparison.compare, swarm_table.printed, swarm_table.sentences, swarm_table.markdown, swarm_page.render,
        swarm_comparison.metrics,
    ),
}  # fmt: skip


def compare(results: Sequence[Mapping[str, Any]], events: Events, cells: Sequence[str]) -> dict[str, Any]:
    """The arms of a run side by side, with the ablation's ``name``; all results are of one ablation.

    Args:
        results, events, cells: as ``Ablation.compare`` takes them.
    """
    name = results[0]["name"]
    return {"name": name, **ABLATIONS[name].compare(results, events, cells)}


def of(found: Found) -> Ablation:
    """The ablation that a comparison is of.

    Raises:
        MoonflowError: an earlier version compared, whose figures have another form.
    """
    if "no_result" not in found:
        raise MoonflowError(
            "an earlier version of moonflow compared these arms: start the run again, which keeps its arms and "
            "compares anew"
        )
    return ABLATIONS[found["name"]]
