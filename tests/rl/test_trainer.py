from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from model.config import preset
from model.data.folder import DataFolder
from model.data.packing import pack
from model.data.sample import Sample
from model.data.tokenize import TokenizedSample, tokenize_prompt
from model.errors import MoonflowError
from model.image import ImageConfig
from model.multimodal import KimiK25
from model.quantization import as_served
from model.rl.environment import Episode, run_episode
from model.rl.objective import ObjectiveConfig
from model.rl.ptx import PTX, ptx
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import Group, RLSettings, RLTrainer
from model.rollout.embedded import EmbeddedEngine
from model.tokenizer import Tokenizer
from model.train.optimizer import build_optimizer
from tests.rl.conftest import Around

SETTINGS = RLSettings(4, prompts_per_iteration=2, samples_per_prompt=4, learning_rate=1e-3, checkpoint_every=2)


class Tasks:
    """Alternately a text question and one about a picture."""

    def __getitem__(self, n: int) -> Sample:
        text, media, content = f"Say {n}.", {}, []
        if n % 2:
            buffer = io.BytesIO()
            Image.fromarray(np.full((28, 28 * (1 + n % 3), 3), 40 * (n % 6), np.uint8)).save(buffer, "png")
            media, content = {"png": buffer.getvalue()}, [{"type": "image", "media": "png"}]
        return Sample(
            key=f"t-{n}", family="t", ability="knowledge", modality="image" if n % 2 else "text", source="s",
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            answer="7", reward="exact", media=media,
        )  # fmt: skip


@pytest.fixture
def tokenizer_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def trainer(tokenizer: Tokenizer, tokenizer_folder: Path, around: Around, settings: RLSettings, wanted: int = 0,
            toggle: Toggle | None = None, ptx: PTX | None = None, acts: str = "full") -> RLTrainer:  # fmt: skip
    """Rewards the share of sampled tokens below ``wanted``; 0 rewards every other length instead.

    ``acts``: the precision of the engine's experts.
    """
    torch.manual_seed(0)
    model = KimiK25(preset("tiny"), seed=3)
    engine = EmbeddedEngine(model)
    toolset = Toolset()

    async def rollout(sample: Sample, seed: int) -> Episode:
        episode = await run_episode(
            engine, tokenizer, sample, ImageConfig(), toolset, max_turns=1, max_new_tokens=6, temperature=1.0, seed=seed
        )
        mine = [t for t, policy in zip(episode.input_ids, episode.policy_mask, strict=True) if policy]
        share = sum(token < wanted for token in mine) / max(1, len(mine)) if wanted else float(sum(mine) % 2)
        return replace(episode, reward=share, correct=share > 0.5)

    async def publish_weights() -> None:
        engine.set_model(as_served(model, acts))

    return RLTrainer(
        model, Tasks(), rollout, publish_weights, settings,
        pad_id=tokenizer.pad_id, tokenizer_folder=tokenizer_folder, around=around, toggle=toggle, ptx=ptx,
    )  # fmt: skip


def test_the_trainer_recomputes_the_engines_own_log_probs(tokenizer, tokenizer_folder, tmp_path) -> None:
    """Text and pictures, several episodes to a row: any misalignment would show as a log-ratio of order one."""
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), SETTINGS)
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
    """Text and pictures, the pre-training loss beside them; twice on several threads, once on one."""
    monkeypatch.setattr("model.train.shares.LEAST", 1)
    pretraining = ptx(DataFolder(data_folder), weight=0.5, rows=3, tokens=256, seed=0)

    def learned(threads: int, groups: list[Group] | None) -> tuple[list[Group], dict, dict, list]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), SETTINGS, ptx=pretraining)
        assert rl.shares.count == threads
        groups = groups or asyncio.run(rl.collect())[0]
        with torch.no_grad():  # off-policy: the loss is not zero, and some tokens are masked
            head = rl.model.language_model.lm_head.weight
            head += 0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(5))
        gradients: dict[str, torch.Tensor] = {}
        rl.optimizer.step = lambda: gradients.update({name: p.grad.clone() for name, p in rl.model.named_parameters()
                                                      if p.grad is not None})  # fmt: skip
        figures = rl.learn(groups)
        rl.shares.close()
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
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), replace(SETTINGS, expert_precision="int4"), acts=acts)
    with torch.no_grad():
        for name, parameter in rl.model.named_parameters():
            if ".mlp.experts." in name:  # they begin at zero
                parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    asyncio.run(rl.publish_weights())
    for _ in range(2):  # the second time with the weights that the first has changed
        groups, _ = asyncio.run(rl.collect())
        assert (rl.learn(groups)["rollout/mismatch_max"] < 1e-4) == (acts == "int4")
        asyncio.run(rl.publish_weights())


def test_the_entropy_of_a_uniform_policy_is_that_of_its_vocabulary(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), SETTINGS)
    with torch.no_grad():
        rl.model.language_model.lm_head.weight.zero_()
    _, figures = asyncio.run(rl.collect())
    assert figures["policy/entropy"] == pytest.approx(np.log(1024), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_run_that_died_ends_with_the_same_weights(
    weight: float, data_folder, tokenizer, tokenizer_folder, tmp_path
) -> None:
    pretraining = ptx(DataFolder(data_folder), weight=weight, rows=1, tokens=256, seed=0)
    whole, first, second = Around(tmp_path / "a"), Around(tmp_path / "b"), Around(tmp_path / "b")
    for around in (whole, first):
        around.work.mkdir(parents=True)
    straight = trainer(tokenizer, tokenizer_folder, whole, SETTINGS, toggle=Toggle(), ptx=pretraining)
    straight.train()
    assert whole.saved == [(0, False), (1, True)]

    class Died(Exception):
        pass

    def die(done: int, total: int, **figures: float) -> None:
        if done == 3:  # a checkpoint exists for 2
            raise Died

    first.update = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        trainer(tokenizer, tokenizer_folder, first, SETTINGS, toggle=Toggle(), ptx=pretraining).train()
    resumed = trainer(tokenizer, tokenizer_folder, second, SETTINGS, toggle=Toggle(), ptx=pretraining)
    resumed.train()
    assert second.saved == [(1, True)] and second.reports == [(3, 4), (4, 4)]
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.loop == straight.loop
    assert resumed.toggle is not None and straight.toggle is not None
    assert resumed.toggle.budgets == straight.toggle.budgets != {}
    assert all(bool({"loss/text", "loss/vision"} & set(row)) == (weight > 0) for row in whole.logged)
    timed = ("tokens/s", "seconds/rollout", "seconds/train")
    straight_log, resumed_log = (
        [{k: v for k, v in row.items() if k not in timed} for row in run] for run in (whole.logged[2:], second.logged)
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
    around = Around(tmp_path)
    around.work.mkdir()
    settings = RLSettings(12, 2, 16, learning_rate=1e-3, updates=2, objective=ObjectiveConfig(tau=0.0))
    rl = trainer(tokenizer, tokenizer_folder, around, settings, wanted=4)
    speak_in_eight_tokens(rl.model, tokenizer)
    rl.train()
    rewards = [row["reward/mean"] for row in around.logged]
    assert np.mean(rewards[:2]) < 0.65  # about half of what it says is below 4
    assert np.mean(rewards[-2:]) > 0.85
    assert around.saved == [(0, True)]


def failing(rl: RLTrainer, breaks: Callable[[int], bool]) -> list[Episode]:
    """Lets the n-th episode fail after it was played where ``breaks(n)``; returns the others as they come."""
    play, kept, number = rl.rollout, [], itertools.count()

    async def rollout(sample: Sample, seed: int) -> Episode:
        n = next(number)
        episode = await play(sample, seed)
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
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), replace(SETTINGS, max_failed_episodes=0.5))
    kept = failing(rl, lambda n: n % 4 == 3)
    groups, figures = asyncio.run(rl.collect())
    assert figures["episodes/failed"] == rl.loop.failed == 2
    assert [len(group.episodes) for group in groups] == [3, 3]
    assert figures["reward/mean"] == pytest.approx(np.mean([episode.reward for episode in kept]))
    assert figures["tokens/response"] == pytest.approx(np.mean([episode.policy_tokens for episode in kept]))

    whole = trainer(tokenizer, tokenizer_folder, Around(tmp_path), replace(SETTINGS, samples_per_prompt=3))
    expected, _ = asyncio.run(whole.collect())
    assert [group.advantages for group in groups] == [group.advantages for group in expected]
    assert [e.input_ids for g in groups for e in g.episodes] == [e.input_ids for g in expected for e in g.episodes]
    assert rl.learn(groups) == whole.learn(expected)
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in rl.model.state_dict().items())


def test_a_group_whose_episodes_all_failed_is_left_out(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), replace(SETTINGS, max_failed_episodes=0.5),
                 toggle=Toggle())  # fmt: skip
    failing(rl, lambda n: n < 4)
    groups, figures = asyncio.run(rl.collect())
    assert [group.sample.key for group in groups] == ["t-1"] and figures["episodes/failed"] == 4
    assert "reward/text" not in figures and "reward/image" in figures
    assert rl.learn(groups)["groups/with_signal"] == 1.0


def test_a_round_without_any_episode_is_passed_over(data_folder, tokenizer, tokenizer_folder, tmp_path) -> None:
    """Half of the run's episodes may fail; the first round's all do. With the pre-training loss it learns even so."""
    around = Around(tmp_path)
    around.work.mkdir()
    settings = replace(SETTINGS, iterations=2, max_failed_episodes=0.5)
    pretraining = ptx(DataFolder(data_folder), weight=0.5, rows=1, tokens=256, seed=0)
    rl = trainer(tokenizer, tokenizer_folder, around, settings, ptx=pretraining)
    failing(rl, lambda n: n < 8)
    assert rl.train().failed == 8
    first, second = around.logged
    assert (first["episodes/failed"], second["episodes/failed"]) == (8.0, 0.0)
    assert "reward/mean" not in first and "reward/mean" in second
    assert first["groups/with_signal"] == 0.0 and first["gradient_norm"] > 0


def test_a_run_ends_past_its_share_of_failed_episodes_also_when_it_was_resumed(
    tokenizer, tokenizer_folder, tmp_path
) -> None:
    settings = replace(SETTINGS, checkpoint_every=1, max_failed_episodes=0.1)  # 3 of 32
    told = r"4 of 32 episodes failed, .* max_failed_episodes = 0.1; the first: t/t-\d: ValueError: half a character"
    around = Around(tmp_path)
    around.work.mkdir()
    straight = trainer(tokenizer, tokenizer_folder, around, settings)
    failing(straight, lambda n: n in (0, 9, 17, 25))
    with pytest.raises(MoonflowError, match=told):
        straight.train()
    assert [index for index, _ in around.saved] == [0, 1, 2]
    resumed = trainer(tokenizer, tokenizer_folder, around, settings)
    failing(resumed, lambda n: n == 5)
    with pytest.raises(MoonflowError, match=told):
        resumed.train()


def test_groups_without_signal_leave_the_weights_alone(tokenizer, tokenizer_folder, tmp_path) -> None:
    rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), SETTINGS, wanted=2000)  # every token earns
    groups, _ = asyncio.run(rl.collect())
    before: dict[str, Any] = {name: value.clone() for name, value in rl.model.state_dict().items()}
    assert rl.learn(groups) == {"groups/with_signal": 0.0}
    assert all(torch.equal(value, rl.model.state_dict()[name]) for name, value in before.items())


def test_the_pretraining_loss_alone_teaches_too(data_folder, tokenizer, tokenizer_folder, tmp_path) -> None:
    """No group has a signal, so what falls here falls by PTX."""
    around = Around(tmp_path)
    around.work.mkdir()
    settings = RLSettings(10, 1, 2, learning_rate=4e-3)
    pretraining = ptx(DataFolder(data_folder), weight=1.0, rows=2, tokens=256, seed=0)
    trainer(tokenizer, tokenizer_folder, around, settings, wanted=2000, ptx=pretraining).train()
    assert all(row["groups/with_signal"] == 0.0 for row in around.logged)
    losses = [row["loss/vision"] for row in around.logged]
    assert np.mean(losses[-2:]) < 0.7 * losses[0]


def test_the_weight_of_the_pretraining_loss_scales_its_gradient(
    data_folder, tokenizer, tokenizer_folder, tmp_path
) -> None:
    norms = []
    for weight in (0.25, 1.0):
        pretraining = ptx(DataFolder(data_folder), weight=weight, rows=2, tokens=256, seed=0)
        rl = trainer(tokenizer, tokenizer_folder, Around(tmp_path), SETTINGS, ptx=pretraining)
        norms.append(rl.learn([Group(Tasks()[0], [], [])])["gradient_norm"])
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-5) and norms[0] > 0
