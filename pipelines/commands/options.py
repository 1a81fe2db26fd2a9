"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="A profile's name (tiny, base, smoke, small, k25, post_train, fusion, claims-sft, claims-swarm, ...) or "
        "the path of a .toml file.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one value, for example joint_pretrain.steps=200; run --dry-run lists all. May be repeated.",
        metavar="STEP.KEY=VALUE",
    ),
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", "-d", help="The run's folder. Default: runs/<profile name>.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]


class Stopped(SystemExit):
    """A command was stopped, and has said what that means for it."""
