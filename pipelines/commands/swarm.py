"""Commands about swarm episodes: swarm show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def show(
    trace: Annotated[Path, typer.Argument(help="A trace's JSON file, or the folder of a run, for example runs/tiny.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page to write, or for a run the folder. Default: next to FILE, or RUN/swarm.",
        ),
    ] = None,
) -> None:
    """Write the HTML page of a swarm episode and print who worked when.

    The steps parl and evaluate of a run keep the traces of a few episodes in MLflow; of a run's folder, all of them
    are fetched. Nothing is opened.
    """
    from pipelines.swarm_traces import show as render

    render(trace, output, Console())
