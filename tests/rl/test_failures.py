from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest

from model.boundary.at_once import all_of
from model.boundary.errors import MoonflowError, Unavailable
from model.data.samples.sample import Sample
from model.rl.environment import Episode
from model.rl.failures import FailureCount, attempt, warn_of_lost_sub_agents
from tests.samples import make_episode

SAMPLE = Sample("k-3", "fact_qa", "knowledge", "text", "s")
GOOD = make_episode(reward=1.0, response="yes")
BROKEN = Episode([], [], [], None, [], 0.0, "", 0, "failed", failure="fact_qa/k-3: it broke")


class Panic(BaseException):
    """Like a panic of a Rust library, it is not an Exception."""


async def good(seconds: float = 0.0) -> Episode:
    await asyncio.sleep(seconds)
    return GOOD


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError


async def raises(error: BaseException) -> NoReturn:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TypeError("no\n text"), "fact_qa/k-3: TypeError: no text"),
        (MoonflowError("the sample is empty"), "fact_qa/k-3: the sample is empty"),
        (RecursionError("too deep"), "fact_qa/k-3: RecursionError: too deep"),
        (MemoryError(), "fact_qa/k-3: MemoryError:"),
        (Panic("index out of bounds"), "fact_qa/k-3: Panic: index out of bounds"),
        (asyncio.CancelledError("by the engine"), "fact_qa/k-3: CancelledError: by the engine"),
        (ValueError("\ud83d"), "fact_qa/k-3: ValueError: \ufffd"),
        (KeyError(Unshowable()), "fact_qa/k-3: KeyError: (its message cannot be shown)"),
        (ValueError("x" * 10_000), "fact_qa/k-3: ValueError: " + "x" * 275),
    ],
)
def test_whatever_breaks_an_episode_it_is_an_episode_with_a_reason(error: BaseException, told: str) -> None:
    episode = asyncio.run(attempt(raises(error), SAMPLE))
    assert (episode.finish_reason, episode.failure) == ("failed", told)
    assert (episode.reward, episode.policy_tokens, episode.input_ids) == (0.0, 0, [])


@pytest.mark.parametrize("error", [Unavailable("no engine"), KeyboardInterrupt(), SystemExit(1)])
def test_what_concerns_all_episodes_is_raised(error: BaseException) -> None:
    with pytest.raises(type(error)):
        asyncio.run(attempt(raises(error), SAMPLE))


def test_an_episode_that_is_cancelled_is_cancelled() -> None:
    async def cancelled() -> bool:
        task = asyncio.create_task(attempt(good(60.0), SAMPLE))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())


def test_an_episode_that_fails_leaves_the_others_alone() -> None:
    episodes = asyncio.run(
        all_of(attempt(one, SAMPLE) for one in (good(0.02), raises(ValueError("a")), good(), raises(Panic("b"))))
    )
    assert [episode.finish_reason for episode in episodes] == ["answer", "failed", "answer", "failed"]


def test_a_round_whose_sub_agents_all_broke_is_told_once_and_lost_ones_here_and_there_are_not(caplog: Any) -> None:
    def asked(count: float, lost: float) -> Episode:
        figures = {"subtasks_assigned": count, "sub_agents_failed": lost}
        return make_episode(metrics=figures, lost="sub-agent of w-0: it broke" if lost else "")

    few = [asked(4, 1), asked(2, 2), asked(1, 0), asked(0, 0)]
    warn_of_lost_sub_agents(few)
    warn_of_lost_sub_agents([make_episode()])
    assert not caplog.messages and FailureCount(0.0, 4).add(few) == 0
    warn_of_lost_sub_agents([*few, asked(3, 3), asked(2, 2)])
    assert caplog.messages == [
        "all sub-agents broke in 3 of 5 episodes that asked some; the first: sub-agent of w-0: it broke"
    ]


def test_where_the_engine_is_gone_the_other_episodes_have_ended_before_it_is_told() -> None:
    ended: list[str] = []

    async def long() -> Episode:
        try:
            return await good(60.0)
        finally:
            ended.append("long")

    async def play() -> None:
        try:
            await all_of(attempt(one, SAMPLE) for one in (long(), raises(Unavailable("no engine"))))
        finally:
            ended.append("all")

    with pytest.raises(Unavailable, match="no engine"):
        asyncio.run(play())
    assert ended == ["long", "all"]


def test_failures_are_counted_and_named_and_end_a_step_past_its_share(caplog: Any) -> None:
    count = FailureCount(allowed=0.25, planned=40)
    assert count.add([GOOD] * 5) == 0 and not caplog.messages
    assert count.add([GOOD, *[BROKEN] * 6]) == 6
    named = "an episode failed: fact_qa/k-3: it broke"
    assert caplog.messages == [named] * 3 + ["and 3 more of these 7 episodes"]
    assert count.add([BROKEN] * 4) == 4 and count.count == 10
    with pytest.raises(MoonflowError, match=r"11 of 40 .* max_failed_episodes = 0.25; the first: fact_qa/k-3: it"):
        count.add([BROKEN])
    with pytest.raises(MoonflowError, match="1 of 40"):
        FailureCount(allowed=0.0, planned=40).add([BROKEN])
