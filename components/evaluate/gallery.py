"""The gallery: a few held-out tasks of every suite, with what the model did before and after SFT and at the end (ours).

It is a file of the step's output, because a manifest's own figures should stay small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.evals.examples import describe_attempt, describe_task
from model.evals.suites import Suite
from model.rl.environment import Episode

GALLERY = "gallery.json"
EXAMPLES = 3  # tasks of a suite, the first ones
MAX_BYTES = 300_000  # of the file; if it would have more, every suite shows fewer tasks
SFT = "zero_vision_sft"


def gallery_steps(steps: Sequence[str]) -> list[str]:
    """The checkpoints that a gallery compares, of those that are evaluated: before SFT, after it, and the final one.

    Without SFT, these are the one that training started from, and the final one.
    """
    at = steps.index(SFT) if SFT in steps else 0
    chosen = [*steps[max(0, at - 1) : at + 1], steps[-1]]
    return list(dict.fromkeys(chosen))


class Gallery:
    """Collects the examples of every suite while the checkpoints are evaluated.

    Args:
        tasks: suite name -> its held-out tasks, in their order.
        shared: suite name -> how many of the first ones every checkpoint is asked.
        steps: the checkpoints of the gallery, in order.
        before: what an earlier attempt has collected (`gallery_before`).
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Sample]],
        shared: Mapping[str, int],
        steps: Sequence[str],
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        before: Mapping[str, Any],
    ) -> None:
        self._tasks = {name: samples[: min(EXAMPLES, shared[name])] for name, samples in tasks.items()}
        self._steps = list(steps)
        self._tokenizer, self._image_config = tokenizer, image_config
        self._found: dict[str, list[dict[str, Any]]] = dict(before.get("suites", {}))

    def watch(self, step: str) -> _Watch | None:
        """What the evaluation of a checkpoint tells its episodes; None if the gallery does not show it."""
        return _Watch(self, step) if step in self._steps else None

    def add(self, step: str, suite: str, episodes: Sequence[Episode]) -> None:
        """Keep what a checkpoint did with the tasks of a suite; ``episodes`` are in their order."""
        samples = self._tasks[suite]
        if suite not in self._found:
            described = [asdict(describe_task(sample, self._image_config)) for sample in samples]
            self._found[suite] = [{**task, "attempts": {}} for task in described]
        for card, sample, episode in zip(self._found[suite], samples, episodes, strict=False):
            card["attempts"][step] = asdict(describe_attempt(sample, episode, self._tokenizer))

    def write(self, folder: Path) -> None:
        """Write the file; nothing is written without examples."""
        suites = {name: self._found[name] for name in self._tasks if name in self._found}
        for count in range(EXAMPLES, 0, -1):
            shown = {name: cards[:count] for name, cards in suites.items()}
            text = json.dumps({"steps": self._steps, "suites": shown}, ensure_ascii=False) + "\n"
            if shown and len(text.encode()) <= MAX_BYTES:
                (folder / GALLERY).write_text(text)
                return


class _Watch:
    """Hands the finished suites of one checkpoint to the gallery (`model.evals.scorer.Watch`)."""

    def __init__(self, gallery: Gallery, step: str) -> None:
        self._gallery, self._step = gallery, step

    def ended(self, suite: Suite, episode: Episode) -> None:
        """An episode alone is not kept: its suite decides whether it is among the first."""

    def finished(self, suite: Suite, episodes: Sequence[Episode]) -> None:
        self._gallery.add(self._step, suite.name, episodes)


def gallery_before(partial: Path | None) -> dict[str, Any]:
    """What an earlier attempt has written; empty if there is nothing."""
    path = None if partial is None else partial / GALLERY
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}
