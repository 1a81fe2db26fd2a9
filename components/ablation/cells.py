"""The cells of an ablation, each an arm with a seed, as its pipeline names them: ``early-0`` (ours)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.boundary.errors import MoonflowError


def of_cell(cell: str, arms: Iterable[str]) -> dict[str, Any]:
    """``early-0`` -> the Config's fields ``arm`` and ``seed``; MoonflowError for anything else."""
    names = list(arms)
    found = re.fullmatch(rf"({'|'.join(names)})-(\d+)", cell)
    if found is None:
        raise MoonflowError(f"{cell!r} is not an arm and a seed: write one of {', '.join(names)}, a dash and a number")
    return {"arm": found[1], "seed": int(found[2])}


def begun(step: str, arms: Iterable[str], results: Sequence[Mapping[str, Any]], tasks: Iterable[str]) -> list[int]:
    """The seeds of which any of these arms has published something.

    Args:
        results: of finished arms.
        tasks: names of tasks that have published anything, ``<step>-<arm>-<seed>`` those of arms.
    """
    named = {f"{step}-{result['arm']}-{result['seed']}" for result in results} | set(tasks)
    pattern = re.compile(rf"{step}-({'|'.join(arms)})-(\d+)")
    return sorted({int(match[2]) for match in map(pattern.fullmatch, named) if match})
