"""Answers that are programs: run in the sandbox, against tests that they never see."""

from __future__ import annotations

import asyncio
import time

import pytest

from model.boundary.errors import MoonflowError, Unavailable
from model.data.samples.sample import Sample
from model.rl.task_check import check_task
from model.rl.tools.toolset import Toolset
from model.rl.verifier import MOST_TESTS, checked_tests, program, verify
from tests.samples import make_sample

TESTS = {"double(2)": "4", "double('ab')": "'abab'", "double([1])": "[1, 1]", "double(True)": "2"}
ASKED = [{"role": "user", "content": "Write double(x)."}]
RIGHT = "def double(x):\n    return x * 2"


def task(**fields: object) -> Sample:
    return make_sample(**{"messages": ASKED, "answer": TESTS, "reward": "tests", **fields})


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (RIGHT, 1.0),
        (f"Here it is:\n```python\n{RIGHT}\n```\nIt doubles.", 1.0),
        (f"{RIGHT}\nprint(double(3))\n1 / 0", 1.0),  # an error after it does not matter
        ("double = lambda x: x + x", 1.0),
        ("def double(x):\n    return 2 * int(x)", 0.5),
        ("def double(x):\n    print(x * 2)", 0.0),
        ("def double(x):\n    print(x)\n    return x * 2", 0.0),  # it shows more than its value
        ("def twice(x):\n    return x * 2", 0.0),
        ("4", 0.0),
        ("", 0.0),
        ("def double(x:", 0.0),
        ("class Same(int):\n    def __repr__(self):\n        return '4'\ndouble = Same", 0.0),
        ("x" * 100_000, 0.0),
        ("\ud800", 0.0),
    ],
)
def test_the_reward_is_the_share_of_tests_that_pass(response: str, reward: float, toolset: Toolset) -> None:
    assert asyncio.run(verify(task(), response, toolset)) == reward


def test_a_program_that_does_not_end_costs_seconds_and_earns_nothing(toolset: Toolset) -> None:
    began = time.process_time()
    assert asyncio.run(verify(task(), "def double(x):\n    while True:\n        pass", toolset)) == 0.0
    assert asyncio.run(verify(task(), RIGHT, toolset)) == 1.0, "the next session is not harmed"
    assert time.process_time() - began < 2, "all of it was spent in the sandbox"


def test_each_answer_has_a_session_of_its_own(toolset: Toolset) -> None:
    async def both() -> list[float]:
        return [await verify(task(), RIGHT, toolset), await verify(task(), "1", toolset)]

    assert asyncio.run(both()) == [1.0, 0.0]


def test_other_rewards_compare_texts(toolset: Toolset) -> None:
    assert asyncio.run(verify(task(reward="exact", answer="Lima"), "lima.", toolset)) == 1.0
    with pytest.raises(MoonflowError, match="unknown reward 'bleu'"):
        asyncio.run(verify(task(reward="bleu"), "lima", toolset))


def test_without_a_sandbox_no_program_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with Toolset() as none, pytest.raises(Unavailable):
        asyncio.run(verify(task(), RIGHT, none))


def test_the_first_block_is_the_program() -> None:
    assert program("a\n```\nx = 1\n```\n```py\ny\n```") == "x = 1\n"
    assert program("x = '```'") == "x = '```'"


@pytest.mark.parametrize("answer", [None, "f(1)", [], {}, {"f(1)": 1}, {f"f({n})": "1" for n in range(MOST_TESTS + 1)}])
def test_tests_of_another_form_are_told(answer: object) -> None:
    with pytest.raises(ValueError, match="pairs of an expression and its value"):
        checked_tests(answer)
    with pytest.raises(MoonflowError, match="sample k: reward 'tests' cannot judge by its answer.*pairs"):
        check_task(task(answer=answer))
    check_task(task())


def test_later_turns_of_a_task_are_texts() -> None:
    picture = {"role": "user", "content": [{"type": "image", "media": "png"}]}
    with pytest.raises(MoonflowError, match="sample k: .*later turns of the user must be plain texts"):
        check_task(task(messages=[*ASKED, {"role": "assistant", "content": "x"}, picture]))
    check_task(task(messages=[picture, {"role": "assistant", "content": "x"}, *ASKED]))
