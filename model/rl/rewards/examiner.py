"""The sandbox's server with the judges of `model.rl.rewards.examined` in it: a process per answer (source: ours).

It imports the libraries once and forks for each answer. That process reads ``[reward, response, true answer]`` and
writes a verdict, under the same layers as a policy's programs (`model.rl.tools.isolation`): it can reach no file and no
other process, and what it does ends with it.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from model.rl.rewards import mathematics, puzzles
from model.rl.rewards.examined import FAULT, MATH
from model.rl.rewards.verdict import SCORE, WrongTruth
from model.rl.tools import sandbox_server

# They make SymPy import what it imports late, as long as it can: a session may open no file.
_WARM = (
    ("1/2", "\\frac{1}{2}"), ("x^2+2x+1", "(x+1)^2"), ("\\sqrt{2}/2", "\\frac{1}{\\sqrt{2}}"), ("(1, 2]", "[1, 2)"),
    ("\\{1, 2\\}", "1, 3"), ("x < 3", "3 > x"), ("x = 5", "6"), ("\\sin x", "\\cos x + e^{i\\pi}"), ("5\\%", "0.05"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}"), ("\\log 8", "3\\log 2"),
    ("x^3 + y = 1", "y = 1 - x^3"), ("\\sum_{i=1}^{3} i", "\\int_0^1 x dx"), ("(1, 2, 3)", "(1, 2, 4)"),
)  # fmt: skip


def answer(question: str, _: dict[str, Any]) -> str:
    """The verdict on one answer, as JSON. It never raises."""
    name, response, truth = json.loads(question)
    try:
        score = mathematics.examine(response, truth) if name == MATH else puzzles.examine(response, truth)
    except WrongTruth as error:
        return json.dumps({FAULT: " ".join(str(error).split())[:200]})
    except Exception:  # a library may raise anything on what a policy wrote
        score = 0.0
    return json.dumps({SCORE: score})


def main() -> None:
    """Serve, with the command line of `model.rl.tools.sandbox_server`."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    puzzles.warm_up()
    for truth, response in _WARM:
        answer(json.dumps([MATH, response, truth]), {})
    sandbox_server.main(answer)
    os._exit(0)  # the kernel frees SymPy's many objects faster than Python


if __name__ == "__main__":
    main()
