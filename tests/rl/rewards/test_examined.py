"""What math-verify and reasoning-gym judge in the sandbox."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import reasoning_gym

from model.boundary.errors import MoonflowError
from model.rl.rewards.examined import question, verdict
from model.rl.rewards.mathematics import last_box
from model.rl.rewards.puzzles import is_expression
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verify
from tests.samples import make_sample


@pytest.fixture(scope="module")
def examine() -> Iterator[Any]:
    """(reward, response, true answer) -> score. The server that judges starts once."""
    with Toolset() as toolset:
        yield lambda reward, response, answer: asyncio.run(
            verify(make_sample(reward=reward, answer=answer), response, toolset)
        )


@pytest.mark.parametrize(
    ("response", "truth", "right"),
    [
        ("391", 391, True), ("-5", -5, True), ("0.5", "1/2", True), (r"so it is $\frac{2}{4}$", "1/2", True),
        (r"First \boxed{7}, no: \boxed{x = 391}.", "391", True), ("The answer is 391", 391, True),
        ("1+2x+x^2", "(x+1)^2", True), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", True),
        (r"\{2, 1\}", r"\{1, 2\}", True),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", True),
        ("390", 391, False), ("0.33", "1/3", False), ("x^2+1", "(x+1)^2", False), ("", 391, False), ("?", 391, False),
        # It has not been worked out, or is a list of guesses.
        ("17*23", 391, False), ("782/2", 391, False), (r"\boxed{\frac{782}{2}}", 391, False),
        (r"\int_0^1 x^2 dx", "1/3", False),
        ("$391$ or $17$", 391, False), ("391, 17", 391, False), (r"\boxed{391} \boxed{17}", 391, False),
        ("2 - 3/2", "1/2", False), ("It is $782/2$.", 391, False), (r"It is $\frac{782}{2}$ and $\bad{$", 391, False),
        ("782÷2", 391, False), ("782:2", 391, False), (r"$x=782 \div 2$", 391, False), (r"\binom{17}{2}", 136, False),
        (r"\begin{vmatrix}3&1\\2&5\end{vmatrix}", 13, False), (r"So the angle is $90^\circ$.", 90, True),
        # Parsers and parts of Python.
        ("٤", 4, False), ("nan", 4, False), ("1e999", 4, False), ("9" * 1900, 4, False), ("9**9**9**9", 4, False),
        (r"\frac{" * 300, 4, False), ("(" * 1900, "x", False), (r"\boxed{" * 30, 4, False), ("\ud800\x00", 4, False),
        ("__import__('os').getpid()", 4, False), ("4" * 70_000, 4, False),
    ],
)  # fmt: skip
def test_a_right_expression_is_one_that_is_equal_and_worked_out(
    response: str, truth: object, right: bool, examine: Any
) -> None:
    assert examine("math", response, truth) == float(right)


def test_an_answer_that_never_ends_costs_seconds_here_none(examine: Any) -> None:
    began = time.process_time()
    assert examine("math", "$9^{9^{9^{9}}}$", "x + 1") == 0.0
    assert examine("math", "x + 1", "x + 1") == 1.0, "the next one is not harmed"
    assert time.process_time() - began < 1


def test_a_true_answer_that_nobody_can_read_is_told(examine: Any) -> None:
    with pytest.raises(MoonflowError, match="the true answer cannot be examined: math-verify does not read"):
        examine("math", "1", r"\frac{")
    with pytest.raises(MoonflowError, match="reasoning-gym has no dataset 'poems'"):
        examine("reasoning_gym", "1", {"dataset": "poems", "entry": {"answer": "1", "metadata": {}}})


DATASETS = ("countdown", "simple_integration", "polynomial_multiplication", "string_insertion", "spiral_matrix",
            "binary_matrix", "chain_sum", "number_sorting", "knights_knaves")  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_a_puzzle_scores_as_reasoning_gym_scores_it(name: str, examine: Any) -> None:
    dataset = reasoning_gym.create_dataset(name, size=2, seed=3)
    for entry in dataset:
        problem = {"dataset": name, "entry": json.loads(json.dumps(entry, default=str))}
        for response in (str(entry["answer"]), f" {entry['answer']}\n", "something else", "7"):
            expected = dataset.score_answer(response.strip(), entry)
            assert examine("reasoning_gym", response, problem) == pytest.approx(min(1.0, max(0.0, expected)))


def test_a_scorer_that_evaluates_the_answer_tells_nothing_of_the_solution(examine: Any) -> None:
    for name in ("string_insertion", "spiral_matrix", "binary_matrix"):
        entry = reasoning_gym.create_dataset(name, size=1, seed=3)[0]
        problem = {"dataset": name, "entry": json.loads(json.dumps(entry))}
        for response in ("oracle_answer", "entry['answer']", "[*entry['answer']]", "().__class__", "9**9**9**9"):
            assert examine("reasoning_gym", response, problem) == 0.0
        listed = entry["answer"] if name == "string_insertion" else [row.split() for row in entry["answer"].split("\n")]
        flat = [*listed] if name == "string_insertion" else listed[0] if name == "spiral_matrix" else listed
        assert examine("reasoning_gym", repr(flat), problem) == 0.1, "a literal list is read as before"
    entry = reasoning_gym.create_dataset("simple_integration", size=1, seed=3)[0]
    problem = {"dataset": "simple_integration", "entry": json.loads(json.dumps(entry))}
    asked = f"Integral({entry['metadata']['integrand']}, {entry['metadata']['variable']})"
    assert examine("reasoning_gym", asked, problem) == 0.0


def test_what_a_session_says_is_a_score_or_nothing() -> None:
    for said in ("", "RuntimeError: out of processor time, the session is dead", "[1]", '{"score": "1"}', "NaN",
                 '{"score": NaN}', '{"score": null}', "1"):  # fmt: skip
        assert verdict(said) == {"score": 0.0}
    assert verdict('{"score": 7}') == {"score": 1.0} and verdict('{"score": 0.25}') == {"score": 0.25}
    assert question("math", "([{" * 14, "1") is None is question("math", "x" * 2001, "1")


def test_the_last_box_is_read_with_its_braces() -> None:
    assert last_box(r"\boxed{1} \boxed{\frac{1}{2}} .") == r"\frac{1}{2}"
    assert last_box(r"\boxed{1") is None is last_box("1")


def test_an_expression_has_numbers_letters_and_functions_alone() -> None:
    assert all(map(is_expression, ("(8 - 2)*4.5", "x**2*sin(x) + C", "3*x**2 - x + 1", "")))
    assert not any(map(is_expression, ("Integral(x, x)", "x.__class__", "a.b", "eval(x)", "x[0]", "'x'", "lambda: 1")))
