"""Episodes of a user's tasks are judged by the user's verifiers; one that breaks costs its own suite."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.evals.own_suites import own_chance, own_prompts, own_suite
from model.evals.score import Outcome
from model.evals.scorer import Evaluation
from model.rl.environment import FAILED
from model.rl.failures import attempt
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.process import TaskFailure
from model.rl.tools.toolset import Toolset
from tests.rl.conftest import ScriptedEngine
from tests.rl.tasks.user_tasks import HERE
from tests.samples import make_episode
from tests.tiny_folders import tiny_tokenizer

NAMES = [f"{HERE}:{name}" for name in ("Say", "RaisesVerdict", "Sparse", "NoPrompts")]


@pytest.fixture(scope="module")
def own() -> Iterator[OwnTasks]:
    with OwnTasks(NAMES) as tasks:
        yield tasks


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


def test_the_answer_is_judged_with_its_parts_and_no_answer_is_not(own: OwnTasks, toolset: Toolset) -> None:
    sample = own[NAMES[0]].prompt(0, "eval", 3)
    answers = [make_episode(response="3"), make_episode(response="12"), make_episode(finish_reason="length")]
    judged = [asyncio.run(own.scored(episode, sample, toolset)) for episode in answers]
    assert [(episode.reward, episode.correct) for episode in judged] == [(1.0, True), (0.0, False), (0.0, False)]
    assert [episode.metrics.get("part/length") for episode in judged] == [1.0, 2.0, None]
    broken = asyncio.run(attempt(own.scored(answers[0], own[NAMES[1]].prompt(0, "eval", 3), toolset), sample))
    assert broken.finish_reason == FAILED and "RaisesVerdict: verify raises RuntimeError: the judge" in broken.failure


def test_a_suite_whose_verdicts_fail_is_left_out_and_the_others_have_their_scores(own: OwnTasks) -> None:
    tokenizer = tiny_tokenizer()
    good, bad = own[NAMES[0]], own[NAMES[1]]
    tasks = {task.short_name: own_prompts(task, 6, 0.1) for task in (good, bad)}
    zero = [*tokenizer.encode("0"), tokenizer.im_end_id]
    engine = ScriptedEngine(lambda request: zero)
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, ImageConfig(), toolset, 0.0, 0, 0.1, own)
        scores = asyncio.run(evaluation.score(engine, engine, tasks, [own_suite(good), own_suite(bad)], 512))
    assert scores.keys() == {"Say"}
    assert (scores["Say"].value, scores["Say"].n, scores["Say"].correct) == (pytest.approx(1 / 6), 6, 1)
    assert scores["Say"].figures["part/length"] == 1.0
    assert math.isclose(own_chance(good, tasks["Say"], toolset), 1 / 6)


def test_chance_of_a_task_with_a_built_in_reward_is_measured_in_the_sandbox_too() -> None:
    with OwnTasks([f"{HERE}:Sums"]) as tasks, Toolset() as toolset:
        (task,) = tasks
        assert own_chance(task, own_prompts(task, 6, 0.1), toolset) == 0.5


def test_broken_tasks_of_earlier_rounds_count_where_they_did_and_keep_their_reason(own: OwnTasks) -> None:
    engine = ScriptedEngine(lambda request: [])
    evaluation = Evaluation(tiny_tokenizer(), ImageConfig(), None, 0.0, 0, 0.0, own)  # type: ignore[arg-type]
    past = [Outcome(0.0, False, 0, failure="fact_qa/7: a verifier broke")] * 3 + [Outcome(1.0, True, 1)] * 60

    def again(name: str) -> dict[str, list[Outcome]]:
        return asyncio.run(evaluation.outcomes(engine, engine, {}, [], 512, None, {name: past}))

    assert again("Say") == {"Say": past}  # 3 broken ones of a user's task are passed over
    with pytest.raises(MoonflowError, match="3 of 63 episodes failed.*the first: fact_qa/7: a verifier broke;"):
        again("fact_qa")


def test_held_out_prompts_that_cannot_be_made_are_left_out_until_too_many_are(own: OwnTasks) -> None:
    assert [sample.index for sample in own_prompts(own[NAMES[2]], 8, 0.1)] == [1, 3, 5, 7]
    with pytest.raises(TaskFailure, match="5 of 20 prompts cannot be made; the last: .*there is no prompt 8"):
        own_prompts(own[NAMES[2]], 20, 0.1)
    with pytest.raises(TaskFailure, match=r"it has 0 prompts to evaluate: count\('eval'\) is 0, and needs 2"):
        own_prompts(own[NAMES[3]], 8, 0.1)
