"""The names of a user's tasks in a profile: ``module:name``, with commas between (source: ours).

Imports nothing heavy: the steps' schemas read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from model.boundary.errors import MoonflowError

_NAME = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)*:[a-z_]\w*", re.ASCII | re.IGNORECASE)


def short_name(name: str) -> str:
    """What tables and metrics call the task ``module:name``."""
    return name.partition(":")[2]


def parse_tasks(text: str) -> list[str]:
    """``"my.tasks:Stars, my.tasks:Maze"`` as a list.

    Raises:
        MoonflowError: a name has another form, or two tasks have one short name.
    """
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        _add(names, name)
    return names


def parse_task_shares(text: str) -> dict[str, float]:
    """``"my.tasks:Stars=0.2, my.tasks:Maze=0.1"`` as a dictionary: tasks and their shares of the prompts.

    Raises:
        MoonflowError: as `parse_tasks`; a share is missing, or the shares are more than 1 in sum.
    """
    names: list[str] = []
    shares: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in entry.partition("="))
        _add(names, name)
        shares[name] = float(value) if re.fullmatch(r"\d*\.?\d{1,9}", value) else 0.0
        if not 0 < shares[name] <= 1:
            raise MoonflowError(f"{entry!r} has no share: write {name}=0.2, a share of the prompts above 0, at most 1")
    if (whole := sum(shares.values())) > 1 + 1e-6:
        raise MoonflowError(f"the shares are {whole:g} in sum: give at most 1, which is your tasks alone")
    return shares


def takes_all(shares: Mapping[str, float]) -> bool:
    """Whether tasks with these shares leave nothing to the data."""
    return sum(shares.values()) > 1 - 1e-6


def _add(names: list[str], name: str) -> None:
    if not _NAME.fullmatch(name):
        raise MoonflowError(f"{name!r} names no task: write module:name, for example my_package.tasks:Stars")
    if name in names:
        raise MoonflowError(f"{name!r} is given twice: leave one of them out")
    if other := next((other for other in names if short_name(other) == short_name(name)), ""):
        raise MoonflowError(f"{other} and {name} would have one name in tables and metrics: give one another name")
    names.append(name)
