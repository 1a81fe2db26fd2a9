"""Runs the cells of a gold trajectory and words their results as the tool does (source: ours).

The tool itself is ``model.rl.tools.notebook``, which data may not import; tests run every kind's cells in both. The
cells come from this package: they are run as Python, without isolation.
"""

from __future__ import annotations

import io
import math
import re
import traceback
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from model.data.families.programs.kind import Image

CELL = "<cell>"  # a cell's name in tracebacks
_ADDRESS = re.compile(" at 0x[0-9a-f]+(?=>)")  # of an object: it differs from run to run
LINE_CHARS = 80  # of a program's line in a traceback, as in the tool


@cache
def _ndimage() -> Any:
    from scipy import ndimage  # type: ignore[import-untyped]  # here: it takes half a second

    return ndimage


class CellSession:
    """The names that cells share: ``np``, ``math`` and ``ndimage``; of pictures ``images``, of a single one ``img``."""

    def __init__(self, images: Sequence[Image] = ()) -> None:
        given: dict[str, Any] = {"images": list(images)} if images else {}
        if len(images) == 1:
            given["img"] = images[0]
        modules = {"np": np, "math": math, "ndimage": _ndimage()}
        self._names: dict[str, Any] = {"__name__": "__main__", **modules, **given}

    def run(self, cell: str) -> tuple[str, bool]:
        """What the cell printed, then the lines of its error; and whether there was one."""
        out = io.StringIO()
        self._names["print"] = partial(print, file=out)
        lines: list[str] = []
        try:
            exec(compile(cell, CELL, "exec"), self._names)
        except Exception as error:
            lines = _shown(error, cell)
        printed = _ADDRESS.sub("", out.getvalue()).rstrip("\n")
        return "\n".join([*filter(None, [printed]), *lines]), bool(lines)


def _shown(error: Exception, cell: str) -> list[str]:
    """The outermost and the innermost line of the cell in the traceback, and the error's type and message.

    Only the first cell of a trajectory fails, so no line is one of another cell.
    """
    numbers = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == CELL]
    message = str(error)
    if isinstance(error, SyntaxError):
        numbers, message = [error.lineno or 1], error.msg
    lines = [(number, cell.split("\n")[number - 1].strip()) for number in dict.fromkeys((*numbers[:1], *numbers[-1:]))]
    shown = [f"line {number}: {text[:LINE_CHARS]}{'...' if len(text) > LINE_CHARS else ''}" for number, text in lines]
    return [*shown, f"{type(error).__name__.removeprefix('_')}: {' '.join(message.split())}"]
