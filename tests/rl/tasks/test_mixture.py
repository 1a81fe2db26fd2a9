"""Prompts of several sources in their shares; broken tasks give way, and a run that continues has the same prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from model.rl.environment import FAILED, Episode
from model.rl.tasks.mixture import TRIES, TaskMixture
from model.rl.tasks.own_tasks import FEW, OwnTasks
from tests.gloo import on_ranks
from tests.rl.tasks.user_tasks import HERE
from tests.samples import make_episode, make_sample

SAY, SPARSE, FEW_PROMPTS, BAD, EMPTY = (
    f"{HERE}:{name}" for name in ("Say", "Sparse", "Few", "RaisesPrompt", "NoPrompts")
)


class Data:
    """Prompts of the data: the n-th is named n."""

    def __getitem__(self, n: int) -> Sample:
        return make_sample(key=str(n), family="data")


@pytest.fixture(scope="module")
def own() -> Iterator[OwnTasks]:
    with OwnTasks([SAY, SPARSE, FEW_PROMPTS, BAD, EMPTY]) as tasks:
        yield tasks


def mixture(own: OwnTasks, shares: dict[str, float], warned: list[str] | None = None, ranks: Ranks | None = None,
            data: Data | None = None) -> TaskMixture:  # fmt: skip
    told = [] if warned is None else warned
    return TaskMixture(own, shares, data, seed=3, allowed=0.1, ranks=ranks or Ranks(), warn=told.append)


def drawn(prompts: TaskMixture, *numbers: int) -> list[tuple[str, str]]:
    return [(sample.family, sample.key) for sample in (prompts[n] for n in numbers)]


def test_each_source_has_its_share_from_the_beginning_and_its_prompts_one_by_one(own: OwnTasks) -> None:
    prompts = mixture(own, {SAY: 0.25, FEW_PROMPTS: 0.125}, data=Data())
    found = drawn(prompts, *range(64))
    for until in range(1, 65):
        counts = Counter(family for family, _ in found[:until])
        assert all(
            abs(counts[name] - share * until) <= 1 for name, share in (("Say", 0.25), ("Few", 0.125), ("data", 0.625))
        )
    assert [key for family, key in found if family == "data"] == [str(n) for n in range(40)]
    assert [key for family, key in found if family == "Say"] == [f"train-3-{n}" for n in range(16)]
    few = [key for family, key in found if family == "Few"]
    assert len(few) == 8 and all(sorted(few[n : n + 3]) == [f"train-3-{k}" for k in range(3)] for n in (0, 3))
    assert drawn(prompts, 50, 3) == [found[50], found[3]]


def test_a_prompt_that_cannot_be_made_gives_way_to_the_next(own: OwnTasks) -> None:
    prompts = mixture(own, {SPARSE: 1.0})
    assert [key for _, key in drawn(prompts, *range(4))] == ["train-3-1", "train-3-1", "train-3-3", "train-3-3"]
    _, figures = prompts.account([], [], 4)
    assert figures == {"prompts/failed/Sparse": 2.0}


@pytest.mark.parametrize(
    ("bad", "told"), [(BAD, f"{TRIES} prompts in a row cannot be made; the last: .*no prompt at all"), (EMPTY, "is 0")]
)
def test_a_task_without_prompts_is_passed_over_and_the_others_go_on(own: OwnTasks, bad: str, told: str) -> None:
    warned: list[str] = []
    prompts = mixture(own, {bad: 0.5, SAY: 0.25}, warned, data=Data())
    counts = Counter(family for family, _ in drawn(prompts, *range(24)))
    assert abs(counts["Say"] - 12) <= 1 and counts["Say"] + counts["data"] == 24, "what is left keeps its proportions"
    (line,) = warned
    assert line.startswith(f"task {bad} is passed over from prompt 0 on: ") and "\n" not in line
    with pytest.raises(MoonflowError, match=f"no task is left to train on: {bad.partition(':')[2]}: .*{told}"):
        mixture(own, {bad: 1.0})[0]


def failed(line: str) -> Episode:
    return make_episode(finish_reason=FAILED, failure=line)


def test_a_task_with_too_many_failed_episodes_is_passed_over_from_the_next_round_on(own: OwnTasks) -> None:
    warned: list[str] = []
    prompts = mixture(own, {SAY: 0.5}, warned, data=Data())
    first = [prompts[n] for n in range(8)]
    broken = [[failed(f"{s.family}: x")] if s.family == "data" else [failed("Say: y"), make_episode()] for s in first]
    others, figures = prompts.account(first, broken, 8)
    assert [episode.failure for episode in others] == ["data: x"] * 4 and figures == {"episodes/failed/Say": 4.0}
    assert not warned, f"{FEW} are passed over singly"
    state = json.loads(json.dumps(prompts.state()))
    second = drawn(prompts, *range(8, 16))
    assert ("Say", "train-3-4") in second
    prompts.account([first[0]], [[failed("Say: y")]] if first[0].family == "Say" else [[make_episode()]], 16)
    prompts.account([s for s in first if s.family == "Say"][:1], [[failed("Say: z")]], 16)
    assert "Say: z" in warned[0] or "Say: y" in warned[0]
    third = drawn(prompts, *range(16, 24))
    assert [key for _, key in third] == [str(n) for n in range(8, 16)], "the data goes on where it was"

    again = mixture(own, {SAY: 0.5}, data=Data())
    again.load(state)
    assert drawn(again, *range(8, 16)) == second
    again.load(json.loads(json.dumps(prompts.state())))
    assert drawn(again, *range(16, 24)) == third and drawn(again, *range(8, 16)) == second


def on_rank(rank: int) -> tuple[list[tuple[str, str]], list[str]]:
    warned: list[str] = []
    with OwnTasks([SAY, BAD]) as own:
        prompts = mixture(own, {SAY: 0.4, BAD: 0.3}, warned, Ranks.join(Layout()), Data())
        return drawn(prompts, *range(6)), warned


def test_ranks_have_the_same_prompts(own: OwnTasks, tmp_path: Path) -> None:
    alone = drawn(mixture(own, {SAY: 0.4, BAD: 0.3}, data=Data()), *range(6))
    (first, warned), (second, silent) = on_ranks(2, on_rank, tmp_path)
    assert first == second == alone and len(warned) == 1 and not silent
