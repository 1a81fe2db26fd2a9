from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.data.batches.packing import pack
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample, tokenize_prompt
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import build_optimizer
from model.rl.environment import Episode
from model.rl.groups import Group
from model.rl.objective import ObjectiveConfig
from model.rl.ptx import ptx
from model.rl.toggle import Toggle
from model.rl.trainer import RLSettings, RLTrainer
from model.train.guard import PATIENCE
from tests.golden.recipe import seeded
from tests.rl.rounds import SETTINGS, Tasks, trainer
from tests.step_services import FolderServices, Killed


@pytest.fixture
def tokenizer_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_trainer_recomputes_the_engines_own_log_probs(tokenizer, tokenizer_folder, tmp_path) -> None:
    """Text and pictures, several episodes to a row: any misalignment would show as a log-ratio of order one."""
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS)
    groups, _ = asyncio.run(rl.collect())
    assert {group.sample.modality for group in groups} == {"text", "image"}
    learned = rl.learn(groups)
    assert learned["groups/with_signal"] > 0
    assert learned["rollout/mismatch_max"] < 1e-4
    assert abs(learned["rollout/mismatch_kl"]) < 1e-5
    assert learned["policy/masked_fraction"] == 0.0


def test_several_threads_give_the_gradient_of_one(
    data_folder, tokenizer, tokenizer_folder, tmp_path, monkeypatch
) -> None:
    """Text and pictures, with the pre-training loss; twice on several threads, once on one."""
    monkeypatch.setattr("model.parallel.thread_replicas.LEAST", 1)
    pretraining = ptx(DataFolder(data_folder), weight=0.5, rows=3, tokens=256, seed=0)

    def learned(threads: int, groups: list[Group] | None) -> tuple[list[Group], dict, dict, list]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS, ptx=pretraining)
        assert rl.engine.replicas.count == threads
        groups = groups or asyncio.run(rl.collect())[0]
        with torch.no_grad():  # off-policy: the loss is not zero, and some tokens are masked
            head = rl.model.language_model.lm_head.weight
            head += 0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(5))
        gradients: dict[str, torch.Tensor] = {}
        named = dict(rl.model.named_parameters())
        rl.engine.optimizer.step = lambda: gradients.update(
            {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        )
        figures = rl.learn(groups)
        rl.engine.replicas.close()
        torch.set_num_threads(before)
        return groups, figures, gradients, [router.load_E for router in rl.model.routers()]

    groups, figures, gradients, loads = learned(1, None)
    assert figures["targets/vision"] > 0 and figures["policy/masked_fraction"] > 0
    assert abs(figures["loss/policy"]) > 1e-3
    _, found, sums, counted = learned(3, groups)
    assert found == pytest.approx(figures, rel=1e-3)
    assert sums.keys() == gradients.keys() and any("vision_tower" in name for name in sums)
    for name, value in gradients.items():
        assert float((sums[name] - value).norm()) <= 1e-4 * float(value.norm()) + 1e-8, name
    assert all(torch.equal(*pair) for pair in zip(counted, loads, strict=True))
    _, same, again, _ = learned(3, groups)
    assert same == found and all(torch.equal(again[name], value) for name, value in sums.items())


@pytest.mark.parametrize("acts", ["int4", "full"])
def test_with_int4_experts_the_policy_that_is_trained_is_the_one_that_acts(
    tokenizer, tokenizer_folder, tmp_path, acts: str
) -> None:
    """Episodes from the rounded weights have the trainer's log-probs; those from the float weights would not."""
    settings = replace(SETTINGS, expert_precision="int4")
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), settings, acts=acts)
    with torch.no_grad():
        for name, parameter in rl.model.named_parameters():
            if ".mlp.experts." in name:  # they begin at zero
                parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    asyncio.run(rl.publish_weights())
    for _ in range(2):  # the second time with the weights that the first has changed
        groups, _ = asyncio.run(rl.collect())
        assert (rl.learn(groups)["rollout/mismatch_max"] < 1e-4) == (acts == "int4")
        asyncio.run(rl.publish_weights())


def test_golden_rounds(golden, tokenizer, tokenizer_folder, tmp_path) -> None:
    """With rewards that differ, so that the policy's own loss has a gradient, in text and pictures."""
    services = FolderServices(tmp_path)
    trainer(tokenizer, tokenizer_folder, services, replace(SETTINGS, iterations=2, checkpoint_every=0)).train()
    golden("rl", [{**seeded(row), "step": step} for step, row in services.logged.items()])


def test_the_entropy_of_a_uniform_policy_is_that_of_its_vocabulary(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS)
    with torch.no_grad():
        rl.model.language_model.lm_head.weight.zero_()
    _, figures = asyncio.run(rl.collect())
    assert figures["policy/entropy"] == pytest.approx(np.log(1024), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_run_that_died_ends_with_the_same_weights(
    weight: float, data_folder, tokenizer, tokenizer_folder, tmp_path
) -> None:
    pretraining = ptx(DataFolder(data_folder), weight=weight, rows=1, tokens=256, seed=0)
    whole = FolderServices(tmp_path / "a")
    first, second = FolderServices(tmp_path / "b", kill_at=3), FolderServices(tmp_path / "b")
    straight = trainer(tokenizer, tokenizer_folder, whole, SETTINGS, toggle=Toggle(), ptx=pretraining)
    straight.train()
    assert [(index, complete) for index, _, complete in whole.saved] == [(0, False), (1, True)]

    with pytest.raises(Killed):  # a checkpoint exists for 2
        trainer(tokenizer, tokenizer_folder, first, SETTINGS, toggle=Toggle(), ptx=pretraining).train()
    resumed = trainer(tokenizer, tokenizer_folder, second, SETTINGS, toggle=Toggle(), ptx=pretraining)
    resumed.train()
    assert [index for index, *_ in second.saved] == [1] and list(second.reports) == [3, 4]
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.state == straight.state
    assert resumed.toggle is not None and straight.toggle is not None
    assert resumed.toggle.budgets == straight.toggle.budgets != {}
    assert all(bool({"loss/text", "loss/vision"} & set(row)) == (weight > 0) for row in whole.logged.values())
    timed = ("tokens/s", "seconds/rollout", "seconds/train")
    straight_log, resumed_log = (
        {step: {k: v for k, v in run.logged[step].items() if k not in timed} for step in (3, 4)}
        for run in (whole, second)
    )
    assert straight_log == resumed_log


def speak_in_eight_tokens(model: KimiK25, tokenizer: Tokenizer) -> None:
    """Supervised: six random tokens of 0-7 after every text prompt, so that exploration finds both sides of 4."""
    optimizer = build_optimizer(model, 4e-3)
    rng = np.random.default_rng(0)
    for _ in range(25):
        samples = []
        for n in range(16):
            prompt = tokenize_prompt(Tasks()[2 * n], tokenizer, ImageConfig()).input_ids
            ids = torch.cat([prompt, torch.tensor(rng.integers(0, 8, 6))])
            samples.append(TokenizedSample(ids, torch.arange(len(ids)) >= len(prompt), None, []))
        batch = pack(samples, tokenizer.pad_id)
        F.cross_entropy(model(batch), batch.targets_N).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_reward_rises(tokenizer, tokenizer_folder, tmp_path) -> None:
    services = FolderServices(tmp_path)
    settings = RLSettings(12, 2, 16, learning_rate=1e-3, updates=2, objective=ObjectiveConfig(tau=0.0))
    rl = trainer(tokenizer, tokenizer_folder, services, settings, wanted=4)
    speak_in_eight_tokens(rl.model, tokenizer)
    rl.train()
    rewards = [row["reward/mean"] for row in services.logged.values()]
    assert np.mean(rewards[:2]) < 0.65  # about half of what it says is below 4
    assert np.mean(rewards[-2:]) > 0.85
    assert [(index, complete) for index, _, complete in services.saved] == [(0, True)]


def failing(rl: RLTrainer, breaks: Callable[[int], bool]) -> list[Episode]:
    """Lets the n-th episode fail after it was played where ``breaks(n)``; returns the others as they come."""
    play, kept, number = rl.rollout, [], itertools.count()

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        n = next(number)
        episode = await play(sample, seed, t)
        if breaks(n):
            raise ValueError("half a character")
        kept.append(episode)
        return episode

    rl.rollout = rollout
    return kept


def test_a_failed_episode_is_counted_and_out_of_its_groups_mean_and_gradient(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    """Three of four episodes of a group come through: all is as if three had been asked for."""
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), replace(SETTINGS, max_failed_episodes=0.5))
    kept = failing(rl, lambda n: n % 4 == 3)
    groups, figures = asyncio.run(rl.collect())
    assert figures["episodes/failed"] == rl.state.failed == 2
    assert [len(group.episodes) for group in groups] == [3, 3]
    assert figures["reward/mean"] == pytest.approx(np.mean([episode.reward for episode in kept]))
    assert figures["tokens/response"] == pytest.approx(np.mean([episode.policy_tokens for episode in kept]))

    whole = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), replace(SETTINGS, samples_per_prompt=3))
    expected, _ = asyncio.run(whole.collect())
    assert [group.advantages for group in groups] == [group.advantages for group in expected]
    assert [e.input_ids for g in groups for e in g.episodes] == [e.input_ids for g in expected for e in g.episodes]
    assert rl.learn(groups) == whole.learn(expected)
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in rl.model.state_dict().items())


def test_a_group_whose_episodes_all_failed_is_left_out(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), replace(SETTINGS, max_failed_episodes=0.5),
                 toggle=Toggle())  # fmt: skip
    failing(rl, lambda n: n < 4)
    groups, figures = asyncio.run(rl.collect())
    assert [group.sample.key for group in groups] == ["t-1"] and figures["episodes/failed"] == 4
    assert "reward/text" not in figures and "reward/image" in figures
    assert rl.learn(groups)["groups/with_signal"] == 1.0


def test_a_round_without_any_episode_is_passed_over(data_folder, tokenizer, tokenizer_folder, tmp_path) -> None:
    """Half of the run's episodes may fail; the first round's all do. With the pre-training loss it learns even so."""
    services = FolderServices(tmp_path)
    settings = replace(SETTINGS, iterations=2, max_failed_episodes=0.5)
    pretraining = ptx(DataFolder(data_folder), weight=0.5, rows=1, tokens=256, seed=0)
    rl = trainer(tokenizer, tokenizer_folder, services, settings, ptx=pretraining)
    failing(rl, lambda n: n < 8)
    assert rl.train().failed == 8
    first, second = services.logged.values()
    assert (first["episodes/failed"], second["episodes/failed"]) == (8.0, 0.0)
    assert "reward/mean" not in first and "reward/mean" in second
    assert first["groups/with_signal"] == 0.0 and first["gradient_norm"] > 0


def test_a_run_ends_past_its_share_of_failed_episodes_also_when_it_was_resumed(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    settings = replace(SETTINGS, checkpoint_every=1, max_failed_episodes=0.1)  # 3 of 32
    told = r"4 of 32 episodes failed, .* max_failed_episodes = 0.1; the first: t/t-\d: ValueError: half a character"
    services = FolderServices(tmp_path)
    straight = trainer(tokenizer, tokenizer_folder, services, settings)
    failing(straight, lambda n: n in (0, 9, 17, 25))
    with pytest.raises(MoonflowError, match=told):
        straight.train()
    assert [index for index, *_ in services.saved] == [0, 1, 2]
    resumed = trainer(tokenizer, tokenizer_folder, services, settings)
    failing(resumed, lambda n: n == 5)
    with pytest.raises(MoonflowError, match=told):
        resumed.train()


def test_groups_without_signal_leave_the_weights_alone(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS, wanted=2000)  # every token earns
    groups, _ = asyncio.run(rl.collect())
    before: dict[str, Any] = {name: value.clone() for name, value in rl.model.state_dict().items()}
    assert rl.learn(groups) == {"groups/with_signal": 0.0}
    assert all(torch.equal(value, rl.model.state_dict()[name]) for name, value in before.items())


def test_the_pretraining_loss_alone_teaches_too(data_folder, tokenizer, tokenizer_folder, tmp_path) -> None:
    """No group has a signal, so what falls here falls by PTX."""
    services = FolderServices(tmp_path)
    settings = RLSettings(10, 1, 2, learning_rate=4e-3)
    pretraining = ptx(DataFolder(data_folder), weight=1.0, rows=2, tokens=256, seed=0)
    trainer(tokenizer, tokenizer_folder, services, settings, wanted=2000, ptx=pretraining).train()
    assert all(row["groups/with_signal"] == 0.0 for row in services.logged.values())
    losses = [row["loss/vision"] for row in services.logged.values()]
    assert np.mean(losses[-2:]) < 0.7 * losses[0]


def test_the_weight_of_the_pretraining_loss_scales_its_gradient(
    data_folder, tokenizer, tokenizer_folder, tmp_path
) -> None:
    norms = []
    for weight in (0.25, 1.0):
        pretraining = ptx(DataFolder(data_folder), weight=weight, rows=2, tokens=256, seed=0)
        rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS, ptx=pretraining)
        norms.append(rl.learn([Group(Tasks()[0], [], [])])["gradient_norm"])
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-5) and norms[0] > 0


def test_steps_that_are_not_finite_leave_the_weights_alone_and_several_in_a_row_end_the_run(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    rl = trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS)
    groups, _ = asyncio.run(rl.collect())
    broken = [replace(group, advantages=[float("nan")] * len(group.episodes)) for group in groups]
    before = {name: value.clone() for name, value in rl.model.state_dict().items()}
    for _ in range(PATIENCE):
        assert "learning_rate" not in rl.learn(broken)
    assert all(torch.equal(value, before[name]) for name, value in rl.model.state_dict().items())
    with pytest.raises(MoonflowError, match="cannot be trained on .*loss/policy is nan"):
        rl.learn(broken)
    assert rl.learn(groups)["learning_rate"] == SETTINGS.learning_rate
