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


def arm_of(cell: str) -> str:
    """``early-0`` -> ``early``."""
    return cell.rpartition("-")[0]


def without_result(cells: Iterable[str], results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ``cells`` of which no result is among ``results``, the figures of finished arms."""
    ended = {f"{result['arm']}-{result['seed']}" for result in results}
    return [cell for cell in cells if cell not in ended]


def no_result_lines(no_result: Sequence[str]) -> list[str]:
    """The line that names the cells without a result; no line if there are none."""
    return [f"no result: {', '.join(no_result)}"] if no_result else []
