"""`moonflow plan`: what a model shape costs and how to divide it, each figure with its formula and its source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from model.boundary.errors import MoonflowError
from model.network.config import ModelConfig, preset
from model.plan.activations import activation_figures
from model.plan.choice import GIB, USABLE, Option, options, suggest
from model.plan.figure import BYTE, COUNT, SYMBOLS, Figure
from model.plan.flops import flop_figures
from model.plan.layout import LayoutConstraints, PlannedLayout, Workload
from model.plan.memory import state_figures, step_figures, update_figure
from model.plan.parameters import parameter_figures
from model.plan.traffic import traffic_figures

NODE = 8  # GPUs of a node, a degree that the table always shows, next to 1 and the largest


@dataclass(frozen=True)
class Plan:
    """The figures of a shape, the layouts for its ranks, and which of them is suggested; all of it is printed."""

    name: str
    gpus: int
    gpu_gib: float
    work: Workload
    figures: dict[str, list[Figure]]
    options: list[Option]
    suggested: Option | None
    shown: Option

    @classmethod
    def of(cls, name: str, gpus: int, work: Workload, gpu_gib: float, constraints: LayoutConstraints) -> Plan:
        """Raises MoonflowError for an unknown preset or an impossible size."""
        config = preset(name)
        if not gpu_gib > 0:
            raise MoonflowError(f"--gpu-memory {gpu_gib:g}: give the GiB of one GPU")
        found = options(config, gpus, work, gpu_gib, constraints)
        suggested = suggest(found)
        shown = suggested or min(found, key=lambda option: option.bytes)
        return cls(name, gpus, gpu_gib, work, _figures(config, shown.layout, work), found, suggested, shown)

    @property
    def verdict(self) -> str:
        usable = f"{USABLE:.0%} of {self.gpu_gib:g} GiB"
        held = f"{self.shown.bytes / GIB:.1f} GiB a GPU"
        if self.suggested is None:
            return f"No layout fits {usable}; the smallest takes {held}: {self.shown.layout.describe()}."
        fitting = sum(option.fits for option in self.options)
        own = self.shown.layout.describe()
        return f"{fitting} of {len(self.options)} layouts fit {usable}. Suggested: {own} ({held})."

    def as_json(self) -> str:
        document: dict[str, Any] = {
            "preset": self.name,
            "gpus": self.gpus,
            "gpu_memory_gib": self.gpu_gib,
            "usable": USABLE,
            **asdict(self.work),
            "verdict": self.verdict,
            "suggested": asdict(self.suggested) if self.suggested else None,
            "detailed": asdict(self.shown.layout),
            "symbols": SYMBOLS,
            "figures": {title: [asdict(figure) for figure in group] for title, group in self.figures.items()},
            "layouts": [asdict(option) for option in self.options],
        }
        return json.dumps(document, indent=2)

    def show(self, console: Console) -> None:
        for title, group in self.figures.items():
            table = Table("figure", title=title, title_justify="left", title_style="bold", width=console.width)
            table.add_column("value", justify="right", no_wrap=True)
            table.add_column("formula")
            table.add_column("source")
            for figure in group:
                table.add_row(figure.name, readable(figure), figure.formula, figure.source)
            console.print(table)
        console.print(f"Symbols: {SYMBOLS}.\n", highlight=False)
        console.print(self._layouts())
        console.print(
            "Peak of one GPU in GiB, and GiB that it sends in a step, with the layers' activations kept or recomputed; "
            f"! is more than {USABLE:.0%} of {self.gpu_gib:g} GiB.",
            highlight=False,
        )
        console.print(self.verdict, style="bold")

    def _layouts(self) -> Table:
        title = f"layouts of {self.gpus} GPUs"
        table = Table("ZeRO", "expert-parallel", "sequence-parallel", title=title, title_justify="left")
        table.title_style = "bold"
        for heading in ("kept: peak", "sends", "recomputed: peak", "sends"):
            table.add_column(heading, justify="right", no_wrap=True)
        rows: dict[tuple[int, int, int], dict[bool, Option]] = {}
        for option in self.options:
            layout = option.layout
            rows.setdefault((layout.zero, layout.experts, layout.sequence), {})[layout.recompute] = option
        most = max(experts for _, experts, _ in rows)
        own = self.shown.layout
        for (zero, experts, sequence), pair in rows.items():
            is_own = (zero, experts, sequence) == (own.zero, own.experts, own.sequence)
            usual = experts in (1, NODE, most) and sequence in (1, NODE)
            if is_own or usual or len(rows) <= 2 * NODE:
                cells = [cell for recompute in (False, True) for cell in self._cells(pair[recompute])]
                table.add_row(str(zero), str(experts), str(sequence), *cells, style="bold" if is_own else None)
        return table

    def _cells(self, option: Option) -> tuple[str, str]:
        return f"{'' if option.fits else '! '}{option.bytes / GIB:.1f}", f"{option.sent / GIB:.1f}"


def _figures(config: ModelConfig, layout: PlannedLayout, work: Workload) -> dict[str, list[Figure]]:
    how = layout.describe()
    step = [*step_figures(config, layout, work), update_figure(config, layout)]
    return {
        "parameters": parameter_figures(config),
        f"FLOPs, rows of {work.tokens} tokens": flop_figures(config, work.tokens, work.patches),
        f"activations, rows of {work.tokens} tokens": activation_figures(config, work.tokens),
        f"memory of one GPU: {how}": [*state_figures(config, layout), *step],
        f"bytes one GPU sends in a step: {how}": traffic_figures(config, layout, work),
    }


def readable(figure: Figure) -> str:
    """The value with three or four digits and a prefix: binary for bytes, decimal for the rest."""
    value, step, prefixes = figure.value, 1000.0, ["", "k", "M", "B" if figure.unit == COUNT else "G", "T", "P", "E"]
    if figure.unit == BYTE:
        step, prefixes = 1024.0, ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    number = 0
    while value >= step and number < len(prefixes) - 1:
        value, number = value / step, number + 1
    unit = "" if figure.unit == COUNT else figure.unit
    digits = f"{value:.0f}" if number == 0 or value >= 1000 else f"{value:.4g}"
    return f"{digits} {prefixes[number]}{unit}".strip()
