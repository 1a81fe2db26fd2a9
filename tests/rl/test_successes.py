from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.folder import serves
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import count_tokens, tokenize, tokenize_prompt
from model.parallel.ranks import Ranks
from model.rl.environment import Episode
from model.rl.groups import Group
from model.rl.successes import INDEX, SHARD, Kept, Successes, ranges
from model.rl.trainer import RLTrainer, as_training_sample
from tests.rl.rounds import SETTINGS, trainer
from tests.samples import make_episode, make_sample
from tests.step_services import FolderServices, Killed


def group(key: str, *episodes: Episode) -> Group:
    task = make_sample(key=key, modality="text", messages=[{"role": "user", "content": key}])
    return Group(task, list(episodes), [0.5] * len(episodes))


def answer(token: int, **fields: Any) -> Episode:
    return make_episode(**{"input_ids": [1, token], "reward": 1.0, **fields})


def kept(successes: Successes, folder: Path) -> list[Sample]:
    for name, content in successes.files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return list(Kept.of(folder).samples())


def told(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    return [(sample.episode["task"], sample.episode["token_ids"][1]) for sample in samples]


def test_of_each_prompt_few_right_answers_are_kept_each_once_and_the_newest_of_all(tmp_path: Path) -> None:
    successes = Successes(4, per_prompt=2, least_reward=0.8)
    half, cut, unsaid = answer(3, reward=0.7), answer(4, finish_reason="length"), answer(5, policy_mask=[False, False])
    told_apart = answer(6, metrics={"tool_calls": 2.0, "broken": float("nan")}, seed=9)
    answers = (half, cut, unsaid, answer(6), answer(6), answer(7, reward=0.8), answer(8))
    figures = successes.add(1, [group("a", *answers), group("b", told_apart)])
    assert figures == {"successes/kept": 3.0, "successes/new": 3.0}
    assert told(found := kept(successes, tmp_path)) == [("f/a", 6), ("f/a", 7), ("f/b", 6)]
    about = {name: found[2].episode[name] for name in ("reward", "parts", "round", "seed", "sampled")}
    assert about == {
        "reward": 1.0, "parts": {"advantage": 0.5, "tool_calls": 2.0}, "round": 1, "seed": 9, "sampled": [[1, 2]],
    }  # fmt: skip
    again = successes.add(2, [group("b", answer(6), answer(7), answer(8)), group("c", answer(6))])
    assert again == {"successes/kept": 4.0, "successes/new": 3.0}
    assert told(kept(successes, tmp_path)) == [("f/a", 7), ("f/b", 7), ("f/b", 8), ("f/c", 6)]
    successes.add(3, [group("b", answer(9), answer(8))])
    assert told(kept(successes, tmp_path)) == [("f/a", 7), ("f/b", 8), ("f/c", 6), ("f/b", 9)]


def test_what_json_cannot_hold_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    successes, odd = Successes(4, 2, 1.0), group("a", answer(6))
    odd = replace(odd, sample=replace(odd.sample, answer={1, 2}))
    assert successes.add(1, [odd, group("b", answer(6))])["successes/new"] == 1.0
    assert told(kept(successes, tmp_path)) == [("f/b", 6)] and "the episode is not kept" in caplog.text


def test_ranges_are_those_of_the_mask() -> None:
    assert ranges([False, True, True, False, True]) == [[1, 3], [4, 5]]
    assert ranges([True]) == [[0, 1]] and ranges([False]) == [] == ranges([])


@pytest.fixture
def tokenizer_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def keeping(rl: RLTrainer, most: int = 5) -> RLTrainer:
    """Three of four answers are right."""
    play = rl.rollout

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        episode = await play(sample, seed, t)
        return replace(episode, finish_reason="answer", reward=float(seed % 4 > 0))

    rl.rollout, rl.successes = rollout, Successes(most, 3, 1.0)
    if (found := rl.services.checkpoints.latest()) is not None:
        rl.successes.load(found)
    return rl


def test_a_kept_episode_is_trained_on_as_it_was_sampled_text_and_picture(
    tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rl = keeping(trainer(tokenizer, tokenizer_folder, FolderServices(tmp_path), SETTINGS), most=100)
    groups, _ = asyncio.run(rl.collect())
    assert rl.successes is not None and rl.successes.add(1, groups)["successes/new"] >= 3
    episodes = {tuple(e.input_ids): as_training_sample(e) for group in groups for e in group.episodes}
    samples = kept(rl.successes, tmp_path)
    assert {sample.modality for sample in samples} == {"text", "image"}
    for sample in samples:
        mine, theirs = tokenize(sample, tokenizer, ImageConfig()), episodes[tuple(sample.episode["token_ids"])]
        assert torch.equal(mine.input_ids, theirs.input_ids) and torch.equal(mine.loss_mask, theirs.loss_mask)
        assert mine.grid_thws == theirs.grid_thws and (mine.pixel_values is None) == (theirs.pixel_values is None)
        assert mine.pixel_values is None or torch.equal(mine.pixel_values, theirs.pixel_values)
        pads = int((mine.input_ids == tokenizer.media_pad_id).sum())
        assert count_tokens(sample, tokenizer, ImageConfig()) == (len(mine.input_ids), pads)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token_ids": [9, 9, 9]}, "does not begin with the tokens of its prompt"),
        ({"extra": 10**6}, "not in the vocabulary"),
        ({"extra": "pad"}, "a media pad without a medium"),
        ({"sampled": []}, "not in order"),
        ({"sampled": [[0, 3]]}, "not in order"),
        ({"sampled": [[10**4, 10**4 + 1]]}, "not in order"),
    ],
)
def test_an_episode_that_does_not_fit_its_prompt_is_refused(
    tokenizer: Tokenizer, change: dict[str, Any], says: str
) -> None:
    task = make_sample(messages=[{"role": "user", "content": "Say 1."}], modality="text")
    prompt = tokenize_prompt(task, tokenizer, ImageConfig()).input_ids.tolist()
    whole = {"token_ids": [*prompt, 5], "sampled": [[len(prompt), len(prompt) + 1]]}
    assert int(tokenize(replace(task, episode=whole), tokenizer, ImageConfig()).loss_mask.sum()) == 1
    if extra := change.get("extra"):
        change = {"token_ids": [*whole["token_ids"], tokenizer.media_pad_id if extra == "pad" else extra]}
    with pytest.raises(MoonflowError, match=f"sample k of f: .*{says}"):
        tokenize(replace(task, episode={**whole, **change}), tokenizer, ImageConfig())


class Alone(Ranks):
    """A rank of any number that plays all episodes."""

    def share(self, work: Sequence[Any]) -> Sequence[Any]:
        return work


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_packs_the_successes(
    rank: int, tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    monkeypatch.setattr(Successes, "files", lambda self: packed.append(rank))
    settings, services = replace(SETTINGS, iterations=1), FolderServices(tmp_path, ranks=Alone(rank))
    keeping(trainer(tokenizer, tokenizer_folder, services, settings, ranks=Alone(rank))).train()
    assert packed == [0] * (rank == 0)


def test_a_run_that_died_has_kept_the_same_and_a_run_that_keeps_none_has_no_file_of_it(
    tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    whole, first, second = (FolderServices(tmp_path / n, kill_at=k) for n, k in (("a", 0), ("b", 3), ("b", 0)))
    keeping(trainer(tokenizer, tokenizer_folder, whole, SETTINGS)).train()
    with pytest.raises(Killed):
        keeping(trainer(tokenizer, tokenizer_folder, first, SETTINGS)).train()
    keeping(trainer(tokenizer, tokenizer_folder, second, SETTINGS)).train()
    straight, resumed = (services.checkpoints.latest() for services in (whole, second))
    assert straight is not None and resumed is not None and len(Kept.of(straight)) == 5
    for name in (INDEX, SHARD):
        assert (straight / name).read_bytes() == (resumed / name).read_bytes()
        assert not serves(name), "a released checkpoint has no training episodes"
    assert [row["successes/kept"] for row in whole.logged.values()][-1] == 5.0

    none = FolderServices(tmp_path / "none")
    trainer(tokenizer, tokenizer_folder, none, replace(SETTINGS, iterations=1)).train()
    saved = none.checkpoints.latest()
    assert saved is not None and not (saved / "successes").exists()
    with pytest.raises(MoonflowError, match="name one of visual_rl"):
        Kept.of(saved)
