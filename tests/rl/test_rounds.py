"""Rounds that are rolled out while an earlier one is learned from."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.boundary.errors import MoonflowError, Unavailable
from model.checkpoint.saving import AsyncSaver
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.served import PublishedCopy
from model.parallel.ranks import Ranks
from model.rl.environment import Episode
from model.rl.groups import Group
from model.rl.rounds import Rounds, staleness
from model.rl.trainer import RLTrainer
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
from tests.rl.rounds import SETTINGS, trainer
from tests.rl.test_objective import by_hand
from tests.step_services import FolderServices, Killed
from tests.uncached import full_logprobs

CPU = torch.device("cpu")
BESIDE = replace(SETTINGS, max_staleness=1, checkpoint_every=0)
ROUND = SETTINGS.prompts_per_iteration * SETTINGS.samples_per_prompt  # episodes


@pytest.fixture
def tokenizer_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def until(condition: Callable[[], Any]) -> None:
    """Wait, in the thread that learns, for what happens in the thread that samples."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def round_of(sample: Sample) -> int:
    return int(sample.key.removeprefix("t-")) // SETTINGS.prompts_per_iteration


def while_learning(rl: RLTrainer, act: Callable[[int, list[Group]], Any]) -> None:
    """``act(iteration, groups)`` in the thread that learns, before it does."""
    learn = rl.learn

    def both(groups: list[Group]) -> dict[str, float]:
        act(rl.state.iteration, groups)
        return learn(groups)

    rl.learn = both  # type: ignore[method-assign]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_round_t_plus_n_begins_with_the_weights_of_t_updates(ahead: int) -> None:
    begun: list[int] = []

    async def play(t: int) -> int:
        begun.append(t)
        await asyncio.sleep(0)
        return 10 * t

    async def run() -> None:
        async with Rounds(play, 5, ahead, CPU) as rounds:
            for t in range(5):
                assert await rounds.played(t) == 10 * t
                await asyncio.sleep(0)
                assert begun == list(range(min(t + ahead, 4) + 1))
                where = await rounds.beside(threading.current_thread)
                assert (where is threading.current_thread()) == (ahead == 0)

    asyncio.run(run())


def test_a_later_round_that_failed_during_a_publish_ends_the_run_at_once() -> None:
    async def play(t: int) -> int:
        await asyncio.sleep([0, 60, 0.01][t])
        if t == 2:
            raise ValueError("no engine")
        return t

    async def run() -> None:
        async with asyncio.timeout(20), Rounds(play, 3, 2, CPU) as rounds:
            await rounds.played(0)
            await asyncio.sleep(0.05)
            await rounds.played(1)

    with pytest.raises(ValueError, match="no engine"):
        asyncio.run(run())


def test_the_thread_that_learns_keeps_its_number_of_threads_whatever_an_engine_sets() -> None:
    async def run() -> tuple[int, int]:
        async with Rounds(nothing, 1, 1, CPU) as rounds:
            await rounds.beside(lambda: None)  # begins the thread
            torch.set_num_threads(1)
            return await rounds.beside(torch.get_num_threads), torch.get_num_threads()

    async def nothing(t: int) -> int:
        return t

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert asyncio.run(run()) == (2, 1)
    finally:
        torch.set_num_threads(before)


def test_what_is_learned_runs_beside_the_rounds_and_its_error_ends_them() -> None:
    ended: list[str] = []

    async def play(t: int) -> int:
        try:
            await asyncio.sleep(0 if t == 0 else 60)
        finally:
            ended.append(f"round {t}")
        return t

    def learn() -> None:
        time.sleep(0.01)
        ended.append("learned")
        raise ValueError("no gradient")

    async def run() -> None:
        async with Rounds(play, 3, 2, CPU) as rounds:
            await rounds.played(0)
            await rounds.beside(learn)

    with pytest.raises(ValueError, match="no gradient"):
        asyncio.run(run())
    assert ended == ["round 0", "learned", "round 1", "round 2"]


def test_staleness_counts_the_publishes_since_each_token_of_the_policy() -> None:
    mask, versions = [False, True, True, False, True], [0, 3, 3, 0, 4]
    episode = Episode([1] * 5, mask, [0.0] * 5, None, [], 0.0, "", 2, "answer", weight_versions=versions)
    assert staleness([episode], 5) == {"staleness/mean": 5 / 3, "staleness/max": 2.0}
    uncounted = replace(episode, weight_versions=[])
    assert staleness([episode, uncounted], 5) == staleness([episode], 5) and staleness([uncounted], 5) == {}
    assert staleness([], 5) == {}


@pytest.mark.parametrize("n", [1, 2])
def test_episodes_are_as_stale_as_allowed_if_updates_are_slow_and_no_staler(
    n: int, tokenizer, tokenizer_folder, tmp_path
) -> None:
    """Each update waits until all that may be sampled meanwhile has been."""
    services = FolderServices(tmp_path)
    rl = trainer(tokenizer, tokenizer_folder, services, replace(BESIDE, max_staleness=n))
    played, play = list[Episode](), rl.rollout

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        played.append(await play(sample, seed, t))
        return played[-1]

    rl.rollout = rollout
    while_learning(rl, lambda t, groups: until(lambda: len(played) == ROUND * min(t + n + 1, rl.settings.iterations)))
    rl.train()
    for t, row in enumerate(services.logged.values()):
        assert row["staleness/mean"] == row["staleness/max"] == min(t, n)
    # Each episode's first weights: those that were published when its round might begin.
    begun = [{version for e in played[ROUND * t : ROUND * (t + 1)] for version in e.weight_versions if version} for t in
             range(rl.settings.iterations)]  # fmt: skip
    assert begun == [{max(1, t + 1 - n)} for t in range(rl.settings.iterations)]


def test_partial_episodes_learn_with_the_log_probs_of_the_weights_that_sampled_each_token(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    """The second round is in flight when the first one's weights are published. Its loss is Eq. 1 as loops, with
    log-probs of the whole forward of the weights of each token."""
    engine = EmbeddedEngine(new_model(preset("tiny"), seed=3), max_batch=ROUND)
    settings = replace(BESIDE, iterations=2)
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), settings, tokens=100, engine=engine)
    published: list[KimiK25] = []
    publish, learn = rl.publish, rl.learn
    checked: list[int] = []

    async def kept(policy: KimiK25) -> None:
        published.append(PublishedCopy().of(policy))
        await publish(policy)

    def first_or_second(groups: list[Group]) -> dict[str, float]:
        if rl.state.iteration == 0:
            until(lambda: engine.running)
            with torch.no_grad():
                head = rl.model.language_model.lm_head.weight
                head += 0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(5))
            return {}
        figures = learn(groups)
        assert figures["loss/policy"] == pytest.approx(expected(groups), rel=1e-3, abs=1e-5)
        return figures

    def expected(groups: list[Group]) -> float:
        total = 0.0
        for group in groups:
            if not group.has_signal:
                continue
            now, old = [], []
            for episode in group.episodes:
                first = episode.policy_mask.index(True)
                request = Request(episode.input_ids[:first], episode.pixel_values, episode.grid_thws)
                versions, sampled = [v - 1 for v in episode.weight_versions[first:]], episode.input_ids[first:]
                checked.append(len(set(versions)))
                now.append(full_logprobs(published[-1:], request, sampled, [0] * len(sampled)))
                old.append(full_logprobs(published, request, sampled, versions))
                assert episode.logprobs[first:] == pytest.approx(old[-1], abs=1e-4)
            rewards = [episode.reward for episode in group.episodes]
            total += by_hand([now], [old], [rewards], settings.objective) / len(groups)
        assert abs(total) > 1e-3
        return total

    rl.publish, rl.learn = kept, first_or_second  # type: ignore[method-assign]
    rl.train()
    assert len(published) == 3 and 2 in checked


def test_several_processes_are_refused_in_one_line(tokenizer, tokenizer_folder, tmp_path) -> None:
    with pytest.raises(
        MoonflowError, match="^max_staleness = 1 works in one process only, and here are 2: set it to 0$"
    ):
        trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), BESIDE, ranks=Ranks(0, 2))


def test_rounds_in_flight_go_on_while_the_upload_of_a_checkpoint_is_awaited(
    tokenizer, tokenizer_folder, tmp_path, monkeypatch
) -> None:
    """The second checkpoint waits for the first one, whose upload lasts until an episode of the third round began."""
    began, wait = threading.Event(), AsyncSaver.wait
    rl = trainer(
        tokenizer, tokenizer_folder, FolderServices(tmp_path), replace(BESIDE, iterations=3, checkpoint_every=1)
    )
    play, learned = rl.rollout, threading.Event()

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        while t == 2 and not learned.is_set():
            await asyncio.sleep(0.001)
        if t == 2:
            began.set()
        return await play(sample, seed, t)

    def slow(saver: AsyncSaver) -> None:
        if rl.state.iteration == 2:
            learned.set()
            assert began.wait(20)
        wait(saver)

    rl.rollout = rollout
    monkeypatch.setattr(AsyncSaver, "wait", slow)
    assert rl.train().iteration == 3


def test_an_engine_that_is_gone_while_the_update_runs_ends_the_run_with_its_own_line(
    tokenizer, tokenizer_folder, tmp_path, caplog, recwarn
) -> None:
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), BESIDE)
    play, learning, gone, learned = rl.rollout, threading.Event(), threading.Event(), list[int]()

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        if round_of(sample) > 0:
            while not learning.is_set():
                await asyncio.sleep(0.001)
            gone.set()
            raise Unavailable("no program can be run: install libseccomp2")
        return await play(sample, seed, t)

    rl.rollout = rollout
    while_learning(rl, lambda t, groups: (learning.set(), gone.wait(60), learned.append(t)))
    with pytest.raises(Unavailable, match="^no program can be run: install libseccomp2$"):
        rl.train()
    gc.collect()  # what nobody awaited would be told now
    assert learned == [0] and nothing_is_left() and not caplog.records and never_awaited(recwarn) == []


def nothing_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("learn")]


def never_awaited(recwarn: pytest.WarningsRecorder) -> list[str]:
    return [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


def test_ctrl_c_ends_what_is_in_flight_and_waits_for_the_update(
    tokenizer, tokenizer_folder, tmp_path, caplog, recwarn
) -> None:
    engine = EmbeddedEngine(new_model(preset("tiny"), seed=3), max_batch=ROUND)
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), BESIDE, tokens=100, engine=engine)
    learned: list[int] = []

    def stopped(groups: list[Group]) -> dict[str, float]:
        until(lambda: engine.running)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: not engine.running)  # it was ended in the other thread
        learned.append(rl.state.iteration)
        return {}

    rl.learn = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        rl.train()
    gc.collect()
    assert learned == [0] and nothing_is_left() and not caplog.records and never_awaited(recwarn) == []


def test_an_episode_that_fails_in_flight_counts_once_in_its_own_round(tokenizer, tokenizer_folder, tmp_path) -> None:
    services = FolderServices(tmp_path)
    rl = trainer(tokenizer, tokenizer_folder, services, replace(BESIDE, iterations=3, max_failed_episodes=0.5))
    play, failed = rl.rollout, threading.Event()

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        if sample.key == "t-2":
            failed.set()
            raise ValueError("half a character")
        return await play(sample, seed, t)

    rl.rollout = rollout
    while_learning(rl, lambda t, groups: failed.wait(60))
    assert rl.train().failed == SETTINGS.samples_per_prompt
    assert [row["episodes/failed"] for row in services.logged.values()] == [0, SETTINGS.samples_per_prompt, 0]


def test_a_killed_run_samples_again_what_was_in_flight_and_learns_from_each_round_once(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    learned: dict[str, list[tuple[int, list[str], int]]] = {"first": [], "second": []}

    def run(name: str, kill_at: int) -> tuple[RLTrainer, FolderServices, set[int]]:
        services, begun = FolderServices(tmp_path, kill_at=kill_at), set[int]()
        rl = trainer(tokenizer, tokenizer_folder, services, replace(BESIDE, checkpoint_every=2))
        play = rl.rollout

        async def rollout(sample: Sample, seed: int, t: int) -> Episode:
            begun.add(round_of(sample))
            return await play(sample, seed, t)

        def note(t: int, groups: list[Group]) -> None:
            tokens = sum(episode.policy_tokens for group in groups for episode in group.episodes)
            learned[name].append((t, [group.sample.key for group in groups], tokens))

        rl.rollout = rollout
        while_learning(rl, note)
        return rl, services, begun

    rl, _, begun = run("first", kill_at=3)  # a checkpoint exists for 2
    with pytest.raises(Killed):
        rl.train()
    assert 3 in begun
    rl, services, again = run("second", kill_at=0)
    state = rl.train()
    assert again == {2, 3} and list(services.logged) == [3, 4]
    rounds = [*learned["first"][:2], *learned["second"]]
    assert [(t, keys) for t, keys, _ in rounds] == [(t, [f"t-{2 * t}", f"t-{2 * t + 1}"]) for t in range(4)]
    assert state.iteration == 4 and state.tokens_seen == sum(tokens for *_, tokens in rounds)
    assert all(row["staleness/max"] <= 1 for row in services.logged.values())
