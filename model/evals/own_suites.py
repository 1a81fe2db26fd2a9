"""A user's tasks as suites: their held-out prompts, and the level of chance (source: ours)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from model.evals.scorer import chance_level, reference_answer
from model.evals.suites import Suite
from model.rl.rewards.verdict import SCORE
from model.rl.tasks.own_tasks import too_many
from model.rl.tasks.process import TaskFailure, TaskProcess
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset

log = logging.getLogger(__name__)

SEED = 0
"""Of every evaluation's prompts, so that scores of several runs compare."""
FEWEST = 2
GUESSED = 32  # prompts that the level of chance is measured on: it takes a verdict for each pair (ours)


def own_suite(task: TaskProcess) -> Suite:
    """The suite of a user's task. The turns of an episode are those of its prompt (`TaskSample`)."""
    return Suite(task.short_name, task.short_name, task.about.max_new_tokens)


def own_prompts(task: TaskProcess, count: int, allowed: float) -> list[TaskSample]:
    """The first ``count`` held-out prompts of a task, or all if there are fewer.

    A prompt that cannot be made is named in the log and left out.

    Args:
        allowed: share of the prompts that may be left out.

    Raises:
        TaskFailure: too many cannot be made, or there are fewer than FEWEST.
    """
    there = task.about.counts["eval"]
    count = count if there is None else min(count, there)
    samples: list[TaskSample] = []
    failed = 0
    for index in range(count):
        try:
            samples.append(task.prompt(SEED, "eval", index))
        except TaskFailure as failure:
            failed += 1
            log.warning("prompt %d is left out: %s", index, failure)
            if too_many(failed, count, allowed):
                raise TaskFailure(f"{failed} of {count} prompts cannot be made; the last: {failure}") from None
    if len(samples) < FEWEST:
        told = f": count('eval') is {there}" if there is not None else ""
        raise TaskFailure(f"{task.name}: it has {len(samples)} prompts to evaluate{told}, and needs {FEWEST}")
    return samples


def own_chance(task: TaskProcess, samples: Sequence[TaskSample], toolset: Toolset) -> float:
    """The task's own level of chance, or the score of the best constant answer on the first GUESSED prompts.

    A verdict that fails adds 0, as its episode would.

    Args:
        toolset: for built-in rewards that run in the sandbox.

    Raises:
        Unavailable: no sandbox server starts.
    """
    if task.about.chance is not None:
        return task.about.chance
    asked = samples[:GUESSED]
    if task.about.reward:
        return asyncio.run(chance_level([replace(sample, reward=task.about.reward) for sample in asked], toolset))
    answers = dict.fromkeys(reference_answer(sample) for sample in asked if sample.answer is not None)
    best = 0.0
    for answer in answers:
        total, failed = 0.0, 0
        for sample in asked:
            try:
                total += task.verify(sample, answer)[SCORE]
            except TaskFailure:
                failed += 1
            if too_many(failed, len(asked), 0.0):
                return best  # the suite will be left out
        best = max(best, total / len(asked))
    return best
