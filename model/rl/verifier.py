"""Judges the answer to a task: by comparing texts (``model.rl.rewards``), or by running it (source: ours).

The answer to a task with the reward ``tests`` is a program. It runs as a cell of a session of its own, then each hidden
test is another cell: an expression, whose value must be shown as expected, and nothing else. The expected values never
enter the sandbox, so a program cannot find them there.
"""

from __future__ import annotations

import re
from typing import Any

from model.data.samples.sample import Sample
from model.rl import rewards
from model.rl.tools.toolset import Toolset

MOST_TESTS = 100  # of a task: each is a cell (ours)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


async def verify(sample: Sample, response: str, toolset: Toolset) -> float:
    """The reward of a response to a task, in [0, 1]; 1 is a right answer.

    Raises:
        MoonflowError: the reward is unknown, or this machine cannot run the program.
        Unavailable: no sandbox server starts.
        Exception: whatever a reward raises on an answer that it cannot read.
    """
    if sample.reward != rewards.TESTS:
        return rewards.score(sample.reward, response, sample.answer)
    tests = checked_tests(sample.answer)
    async with toolset.judging(sample) as session:
        await session.run(program(response))
        # A cell shows the value of its last expression after what was printed; in a tuple, None is shown as well.
        passed = [await session.run(f"({expression},)") == f"({shown},)" for expression, shown in tests.items()]
    return sum(passed) / len(passed)


def program(response: str) -> str:
    """The program in a response: its first block between lines of three backticks, or all of it."""
    fenced = _FENCED.search(response)
    return fenced[1] if fenced else response


def checked_tests(answer: Any) -> dict[str, str]:
    """The hidden tests of a task: expression -> its value, as ``repr`` writes it.

    Raises:
        ValueError: the answer has another form, or more than MOST_TESTS tests.
    """
    texts = isinstance(answer, dict) and all(isinstance(text, str) for pair in answer.items() for text in pair)
    if not texts or not 0 < len(answer) <= MOST_TESTS:
        raise ValueError(f"it must be 1 to {MOST_TESTS} pairs of an expression and its value, all texts")
    return dict(answer)
