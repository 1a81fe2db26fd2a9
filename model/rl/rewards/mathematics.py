"""Whether two mathematical expressions are equal, by math-verify (Apache-2.0), and what its scorer must not be asked.

It decides equality by evaluating both sides. So it would accept the question as the answer ("17 * 23" is equal to 391),
and of a list of guesses it takes the last. Here an answer must be as worked out as the truth is (source: ours):

- where the truth is an integer, it must be a plain number; where it is a fraction or a decimal, a fraction or number;
- an integral, a sum, a product, a limit or a derivative that is not in the truth has not been worked out;
- else it may have at most twice as many operations as the truth, and MORE.

It runs in the sandbox, which bounds its time: math-verify's own limits are off, since they need the main thread's
signals and do not end a long step of C.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify import verify as equal
from sympy import (
    Basic,
    Derivative,
    Eq,
    Float,
    Integer,
    Integral,
    Limit,
    MatrixBase,
    Mul,
    Product,
    Sum,
    UnevaluatedExpr,
    preorder_traversal,
)

from model.rl.rewards.verdict import WrongTruth

MORE = 4
UNWORKED = (Integral, Sum, Product, Limit, Derivative)
FRACTION = 3  # operations of -1/2
_BOXED = "\\boxed{"
_MATH = re.compile(r"\$|\\\(|\\\[")
_WORD = re.compile(r"[A-Za-z]{3,}")  # one of prose, after commands are gone
_COMMAND = re.compile(r"\\(?:(?:begin|end|text|mathrm|operatorname)\{[^{}]*\}|[A-Za-z]+)")
# What SymPy works out while it reads: divisions, binomial coefficients, determinants.
_COMPUTES = re.compile(r"[/÷]|\d\s*:\s*\d|frac|\\div|binom|\\choose|\\det|\\begin")
_TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def examine(response: str, answer: str) -> float:
    """1 if the response's last expression is equal to the truth and as worked out, else 0.

    Raises:
        WrongTruth: it is no expression.
    """
    truth, _ = read(answer)
    if truth is None:
        raise WrongTruth(f"math-verify does not read {answer[:60]!r}")
    said, text = read(response)
    if said is None or not worked_out(said, truth):
        return 0.0
    if isinstance(_value(truth), Integer | Float) and _COMPUTES.search(text):
        return 0.0
    return float(equal(truth, said, timeout_seconds=None))


def read(text: str) -> tuple[Any, str]:
    """The expression that a text ends with, and how it is written there: its last ``\\boxed{}``, else what math-verify
    finds; (None, "") if there is none."""
    if (alone := stated(text)) is not None:
        text = f"${alone}$"
    # With these modes it gives one expression and its text, or the text alone, which it cannot read.
    found = parse(text, _TARGETS, fallback_mode="first_match", extraction_mode="first_match", parsing_timeout=None)
    return (found[0], str(found[-1])) if found and not isinstance(found[0], str) else (None, "")


def stated(text: str) -> str | None:
    """The expression in the last box of a text, or the whole text if it is nothing else; None if there is prose."""
    if (boxed := last_box(text)) is not None:
        return boxed
    bare = text.strip().rstrip(".").strip("$")
    return None if _MATH.search(bare) or _WORD.search(_COMMAND.sub(" ", bare)) else bare


def last_box(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds, with its braces balanced; None if there is none."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, start = 1, start + len(_BOXED)
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def worked_out(said: Any, truth: Any) -> bool:
    """Whether an answer has been worked out as far as the truth has."""
    said, truth = _value(said), _value(truth)
    if any(isinstance(node, UNWORKED) for node in _nodes(said)):
        return any(isinstance(node, UNWORKED) for node in _nodes(truth))
    if isinstance(truth, Integer | Float):
        return operations(said) == 0
    if operations(truth) <= FRACTION and getattr(truth, "is_rational", False):
        return operations(said) <= FRACTION and not any(node.is_Add for node in _nodes(said))
    return operations(said) <= 2 * operations(truth) + MORE


def operations(expression: Any) -> int:
    """The operations of an expression: the nodes of its tree that have operands."""
    return sum(not node.is_Atom for node in _nodes(expression))


def _value(expression: Any) -> Any:
    """The right side of ``x = ...``, and the figure of a percentage."""
    if isinstance(expression, Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    if isinstance(expression, Mul) and any(isinstance(factor, UnevaluatedExpr) for factor in expression.args):
        expression = expression.args[0]
    return expression


def _nodes(expression: Any) -> Iterator[Basic]:
    for one in expression.flat() if isinstance(expression, MatrixBase) else [expression]:
        yield from preorder_traversal(one)
