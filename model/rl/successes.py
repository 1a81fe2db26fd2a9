"""Successful episodes that RL keeps for rejection-sampled fine-tuning (source: K2.5 section on outcome visual RL, whose
successes are fine-tuned on before joint RL; the bounds are ours).

A success is a sample like any other: its task with the episode's own tokens, in a shard of the training data's form.
The shard is part of every checkpoint, so a run that is killed and continued keeps what an undisturbed run keeps. Its
samples are also all that is remembered: what was dropped for newer ones may be kept again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from model.boundary.errors import MoonflowError
from model.checkpoint.folder import SUCCESSES
from model.data.samples.record import read_record
from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import Shard, encode_record, write_shard
from model.rl.environment import Episode
from model.rl.groups import Group

log = logging.getLogger(__name__)

INDEX, SHARD = f"{SUCCESSES}/index.json", f"{SUCCESSES}/0000.tar"


@dataclass(frozen=True)
class Kept:
    """The successes in a checkpoint.

    Attributes:
        entries: its shards as in a data folder's index.json; none if nothing is kept.
        source: of the shards.
    """

    entries: list[dict[str, Any]]
    source: LocalShards

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """Raises MoonflowError if the list of shards is damaged, or if the checkpoint's training kept none at all."""
        try:
            entries = json.loads((folder / INDEX).read_text())["families"][SUCCESSES]["train"]
            entries = [{"shard": str(entry["shard"]), "samples": int(entry["samples"])} for entry in entries]
        except FileNotFoundError:
            raise MoonflowError(
                f"checkpoint {folder} has no {INDEX}: its step did not keep successes; name one of visual_rl"
            ) from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise MoonflowError(
                f"{folder / INDEX} cannot be read ({error}); run the step that wrote it again"
            ) from None
        return cls([entry for entry in entries if entry["samples"] > 0], LocalShards(folder))

    def __len__(self) -> int:
        return sum(entry["samples"] for entry in self.entries)

    def samples(self) -> Iterator[Sample]:
        """All of them, the oldest first. Raises MoonflowError if one cannot be read."""
        for entry in self.entries:
            shard = Shard(self.source.open(entry["shard"]), entry["shard"])
            yield from (shard[number] for number in range(entry["samples"]))
            shard.close()


class Successes:
    """The newest successful episodes of a run, the oldest first.

    Args:
        most: how many are kept; a newer one takes the place of the oldest.
        per_prompt: how many of them have the same prompt; a newer one takes the place of that prompt's oldest.
        least_reward: what an episode must earn.
    """

    def __init__(self, most: int, per_prompt: int, least_reward: float) -> None:
        self._most, self._per_prompt, self._least = most, per_prompt, least_reward
        self._kept: dict[str, Sample] = {}  # by their digests

    def add(self, iteration: int, groups: Sequence[Group]) -> dict[str, float]:
        """Keep the successes of a round, the first one being 1; ``successes/kept`` and ``successes/new`` as figures.

        Of each prompt the first episodes of the round are taken, in the order of their seeds; one with the tokens of
        another that is kept for the same prompt is passed over.
        """
        taken = Counter[str]()
        new: dict[str, Sample] = {}
        for number, group in enumerate(groups):
            prompt = _prompt(group.sample)
            for place, (episode, advantage) in enumerate(zip(group.episodes, group.advantages, strict=True)):
                if not self._succeeds(episode) or taken[prompt] >= self._per_prompt:
                    continue
                digest = _digest(prompt, episode.input_ids)
                if digest in self._kept or digest in new:
                    continue
                key = f"{iteration:06d}-{number:04d}-{place:03d}"
                sample = as_sample(key, group.sample, episode, advantage, iteration)
                if _can_be_written(sample):
                    taken[prompt] += 1
                    new[digest] = sample
        self._kept = self._newest({**self._kept, **new})
        return {"successes/kept": float(len(self._kept)), "successes/new": float(len(new))}

    def files(self) -> dict[str, bytes]:
        """Path in a checkpoint -> content."""
        kept = list(self._kept.values())
        entries = [{"shard": SHARD, "samples": len(kept)}]
        index = {"families": {SUCCESSES: {"train": entries}}}
        return {INDEX: (json.dumps(index) + "\n").encode(), SHARD: write_shard(kept)}

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint. Raises MoonflowError if what it keeps cannot be read."""
        samples = Kept.of(checkpoint).samples()
        self._kept = {_digest(sample.episode["task"], sample.episode["token_ids"]): sample for sample in samples}

    def _newest(self, kept: Mapping[str, Sample]) -> dict[str, Sample]:
        """The newest of each prompt, and of these the newest of all, the oldest first."""
        of_prompt = Counter[str]()
        found: list[tuple[str, Sample]] = []
        for digest, sample in reversed(list(kept.items())):
            prompt = sample.episode["task"]
            if of_prompt[prompt] < self._per_prompt:
                of_prompt[prompt] += 1
                found.append((digest, sample))
        return dict(reversed(found[: self._most]))

    def _succeeds(self, episode: Episode) -> bool:
        return episode.finish_reason == "answer" and episode.policy_tokens > 0 and episode.reward >= self._least


def as_sample(key: str, task: Sample, episode: Episode, advantage: float, iteration: int) -> Sample:
    """An episode as a sample: its task without what only tools read, and its own tokens."""
    values = {field.name: getattr(task, field.name) for field in fields(Sample)}
    figures = {"advantage": advantage, **episode.metrics}
    told = {
        "token_ids": list(episode.input_ids),
        "sampled": ranges(episode.policy_mask),
        "reward": float(episode.reward),
        "parts": {name: float(value) for name, value in figures.items() if np.isfinite(value)},
        "task": _prompt(task),
        "round": iteration,
        "seed": episode.seed,
    }
    return Sample(**{**values, "key": key, "environment": {}, "episode": told})


def ranges(mask: Sequence[bool]) -> list[list[int]]:
    """[begin, end) of each run of True."""
    edges = np.flatnonzero(np.diff([False, *mask, False])).tolist()
    return [[begin, end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _prompt(task: Sample) -> str:
    return f"{task.family}/{task.key}"


def _digest(prompt: str, token_ids: Sequence[int]) -> str:
    """Of a prompt and the tokens of its episode."""
    return hashlib.sha256(json.dumps([prompt, list(token_ids)]).encode()).hexdigest()


def _can_be_written(sample: Sample) -> bool:
    """Whether a shard can hold it: a task of the user's may have an answer that JSON cannot hold."""
    try:
        read_record(encode_record(sample), f"sample {sample.key}")
    except MoonflowError as error:
        log.warning("%s (the episode is not kept)", error)
        return False
    return True
