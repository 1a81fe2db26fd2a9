"""How the judge's score joins the verifiable reward, and by which rubric an episode is judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boundary.errors import Transient
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.rl.environment import Episode, judged
from model.rl.groups import outcome, rewarded_groups
from model.rl.judges.judge import Judge, Judgement
from model.rl.judges.reward import JudgedReward, alternatives, combined, drawn_rubric, question_of
from model.rl.tools.toolset import Toolset
from tests.samples import make_sample

TASK = make_sample(
    messages=[
        {"role": "user", "content": [{"type": "image", "media": "png"}, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": "seven"},
    ],
    answer="seven", reward="exact", rubric="Short.\n\n Kind. \nTrue.",
)  # fmt: skip
SHARE = st.floats(0, 1)


class Fixed(Judge):
    """Gives one score, and keeps what it was asked."""

    def __init__(self, score: float | None) -> None:
        self.score, self.asked = score, list[tuple[str, str, str]]()

    async def meets(self, question: str, answer: str, rubric: str) -> Judgement:
        self.asked.append((question, answer, rubric))
        return Judgement(self.score, "" if self.score is not None else "it said 'maybe'")


class Gone(Judge):
    def __init__(self) -> None: ...

    async def meets(self, question: str, answer: str, rubric: str) -> Judgement:
        raise Transient("nobody answers at http://judge")


def episode(response: str, seed: int = 0, reason: str = "answer") -> Episode:
    metrics = {"tool_calls": 0.0}
    return Episode([1, 2], [False, True], [0.0, -1.0], None, [], 0.0, response, 1, reason, metrics=metrics, seed=seed)


def scored(judge: Judge, toolset: Toolset, played: Episode, sample: Sample = TASK, **more: Any) -> Episode:
    return asyncio.run(JudgedReward(judge, judged, 0.5, **more)(played, sample, toolset))


@given(SHARE.filter(lambda v: v < 1), SHARE, SHARE, st.floats(0, 10))
def test_no_judge_lifts_a_wrong_answer_over_a_right_one(wrong: float, lifted: float, low: float, weight: float) -> None:
    assert combined(wrong, lifted, weight) < combined(1.0, low, weight)
    assert combined(1.0, None, weight) <= combined(1.0, low, weight) <= 1.0 + weight


@given(SHARE, SHARE)
def test_of_two_right_answers_the_better_one_earns_more(a: float, b: float) -> None:
    assert (combined(1.0, a, 0.5) > combined(1.0, b, 0.5)) == (0.5 * a + 1 > 0.5 * b + 1)


def test_both_parts_are_figures_and_a_wrong_answer_is_not_judged(toolset: Toolset) -> None:
    judge = Fixed(0.8)
    right = scored(judge, toolset, episode("Seven."))
    assert (right.reward, right.correct) == (pytest.approx(1.4), True)
    assert right.metrics == {"tool_calls": 0.0, "reward/verifiable": 1.0, "reward/judge": 0.8, "judge/unread": 0.0}
    assert judge.asked[0][:2] == ("[image] Which?", "Seven.")
    for wrong in (episode("eight"), episode("seven", reason="length")):
        found = scored(judge, toolset, wrong)
        assert found.reward == 0.0 and found.metrics["reward/verifiable"] == 0.0 and "reward/judge" not in found.metrics
    plain = scored(judge, toolset, episode("seven"), replace(TASK, rubric=" \n"))
    assert plain.reward == 1.0 and "judge/unread" not in plain.metrics and len(judge.asked) == 1

    _, figures = rewarded_groups(0, [TASK], [[right, scored(judge, toolset, episode("eight"))]], outcome, None)
    assert figures["reward/verifiable"] == 0.5 and figures["reward/judge"] == pytest.approx(0.8)
    assert figures["reward/mean"] == pytest.approx(0.7) and figures["accuracy/mean"] == 0.5


def test_an_unreadable_verdict_is_counted_named_and_gives_no_reward(
    toolset: Toolset, caplog: pytest.LogCaptureFixture
) -> None:
    found = scored(Fixed(None), toolset, episode("seven"))
    assert found.reward == 1.0 and found.metrics["judge/unread"] == 1.0 and "reward/judge" not in found.metrics
    assert ": it said 'maybe'" in caplog.text


def test_a_judge_that_is_gone_costs_no_right_answer_and_is_told_once(toolset: Toolset) -> None:
    told: list[str] = []
    reward = JudgedReward(Gone(), judged, 0.5, warn=told.append)
    for number in (1, 2):
        found = asyncio.run(reward(episode("seven"), TASK, toolset))
        assert found.reward == 1.0 and found.correct and found.metrics["judge/unread"] == 1.0
        assert reward.unread == number and len(told) == 1 and "nobody answers at http://judge" in told[0]


def test_the_episodes_seed_draws_one_of_the_rubrics_or_it_is_always_the_first() -> None:
    assert alternatives(TASK) == ["Short.", "Kind.", "True."]
    drawn = [drawn_rubric(TASK, seed, several=True) for seed in range(300)]
    assert drawn == [drawn_rubric(TASK, seed, several=True) for seed in range(300)]
    assert set(Counter(drawn)) == set(alternatives(TASK)) and min(Counter(drawn).values()) > 70
    assert {drawn_rubric(TASK, seed, several=False) for seed in range(20)} == {"Short."}


def test_the_true_satisfaction_of_an_open_question_is_a_figure_beside_the_judges(toolset: Toolset) -> None:
    shares = set()
    for index in range(40):
        sample = FAMILIES["open_answer"].sample(0, "train", index)
        found = scored(Fixed(1.0), toolset, episode(sample.messages[-1]["content"], seed=index), sample, several=True)
        assert found.reward == 1.5
        shares.add(round(3 * found.metrics["judge/satisfied"]))
    assert shares == {0, 1, 2, 3}
    assert "judge/satisfied" not in scored(Fixed(1.0), toolset, episode("seven")).metrics


def test_a_judge_reads_what_the_user_says_later_too() -> None:
    turns = [{"role": "system", "content": "Be kind."}, *TASK.messages, {"role": "user", "content": "And now?"}]
    assert question_of(replace(TASK, messages=turns)) == "Be kind.\n[image] Which?\nAnd now?"
