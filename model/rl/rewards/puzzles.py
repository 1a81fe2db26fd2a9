"""What a problem of reasoning-gym scores, by its own scorer, and what that scorer must not be asked (source: ours).

Some scorers give the response to Python's ``eval`` or SymPy's ``parse_expr``, with the problem and its solution in
reach: "entry['answer']" would be right. What these are given must therefore be a literal of Python, or an expression of
numbers, single letters and the functions listed here; anything else is no answer. So "Integral(2*x, x)" is none,
which a scorer that differentiates it would accept.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from reasoning_gym.factory import DATASETS, get_score_answer_fn

from model.rl.rewards.verdict import WrongTruth

LITERALS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Datasets whose scorers evaluate the response if it is not the solution's text."""
EXPRESSIONS = ("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration")
"""Datasets whose scorers parse the response with SymPy."""
FUNCTIONS = ("exp", "log", "ln", "sqrt", "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh",
             "cosh", "tanh", "pi", "Abs")  # fmt: skip
_NAME = re.compile(r"[^\W\d]\w*")
_SAFE = re.compile(r"[\w\s+\-*/^().,]*", re.ASCII)
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|__")


def examine(response: str, problem: Mapping[str, Any]) -> float:
    """The score of a response, from 0 to 1.

    Raises:
        WrongTruth: there is no such dataset.
    """
    name, entry = problem["dataset"], problem["entry"]
    if name not in DATASETS or name == "composite":
        raise WrongTruth(f"reasoning-gym has no dataset {name!r} with a scorer")
    response = response.strip()
    if name in LITERALS and not _is_literal(response):
        return float(response == entry["answer"].strip() or response in entry["metadata"].get("valid_answers", ()))
    if name in EXPRESSIONS and not is_expression(response):
        response = ""
    return float(scorer(name)(response, entry))


@cache
def scorer(name: str) -> Any:
    """The scorer of a dataset: (response, problem) -> score."""
    return get_score_answer_fn(name)


def warm_up() -> None:
    """Make all scorers, which may read files now and not later."""
    for name in DATASETS:
        if name != "composite":
            scorer(name)


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True


def is_expression(text: str) -> bool:
    """Whether a text has only numbers, single letters, operators and FUNCTIONS."""
    names = _NAME.findall(text)
    return (
        bool(_SAFE.fullmatch(text))
        and not _ATTRIBUTE.search(text)
        and all(len(name) == 1 or name in FUNCTIONS for name in names)
    )
