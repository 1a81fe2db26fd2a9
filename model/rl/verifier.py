"""Judges the answer to a task: by comparing texts (``model.rl.rewards``), by asking a library in the sandbox
(``model.rl.rewards.examined``), or by running it (source: ours).

The answer to a task with the reward ``tests`` is a program. It runs as a cell of a session of its own, then each hidden
test is another cell: an expression, whose value must be shown as expected, and nothing else. The expected values never
enter the sandbox, so a program cannot find them there.
"""

from __future__ import annotations

import re
from typing import Any

from model.data.samples.sample import Sample
from model.rl import rewards
from model.rl.rewards import examined
from model.rl.rewards.verdict import SCORE, Verdict
from model.rl.tools.toolset import Toolset

MOST_TESTS = 100  # of a task: each is a cell (ours)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


async def verify(sample: Sample, response: str, toolset: Toolset) -> float:
    """The score of a response to a task; see `verdict`."""
    return (await verdict(sample, response, toolset))[SCORE]


async def verdict(sample: Sample, response: str, toolset: Toolset) -> Verdict:
    """The ``score`` of a response to a task, in [0, 1], and its parts if it has them; 1 is a right answer.

    Raises:
        MoonflowError: the reward is unknown, the true answer cannot be examined, or this machine cannot run the
            program.
        Unavailable: no sandbox server starts.
        Exception: whatever a reward raises on a true answer that it cannot read.
    """
    if sample.reward in rewards.EXAMINED:
        return await _examined(sample, response, toolset)
    if sample.reward != rewards.TESTS:
        return rewards.judge(sample.reward, response, sample.answer)
    tests = checked_tests(sample.answer)
    async with toolset.judging(sample) as session:
        await session.run(program(response))
        # A cell shows the value of its last expression after what was printed; in a tuple, None is shown as well.
        passed = [await session.run(f"({expression},)") == f"({shown},)" for expression, shown in tests.items()]
    return {SCORE: sum(passed) / len(passed)}


async def _examined(sample: Sample, response: str, toolset: Toolset) -> Verdict:
    truth = rewards.EXAMINED[sample.reward](sample.answer)
    asked = examined.question(sample.reward, response, truth)
    if asked is None:
        return {SCORE: 0.0}
    async with toolset.examining(sample) as session:
        return examined.verdict(await session.run(asked))


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
