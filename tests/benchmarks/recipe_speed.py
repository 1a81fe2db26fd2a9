"""How near the training stages come to the speed of the bare training step, and where the rest goes.

    python tests/benchmarks/recipe_speed.py [--steps 120] [--rounds 3] [--threads 2] [--json]

Every stage runs as in ``moonflow run``, by ``run_step`` with the object store and MLflow of a local run: batches from a
worker process, images, the guard against spikes, metrics, progress and checkpoints. Its parameters are the defaults
but for the number of steps. Tokens per second count from step 20, when kernels are compiled, to the last one.

- ``<stage>_over_step``: that speed over the speed of ``model_speed.py``'s training step (random text, no images,
  MuonClip as in training) with batches of the same shape. ``<stage>_over_adamw``: the same step with torch's AdamW.
- ``<stage>_ms``: milliseconds of a step by part. ``data`` is the wait for the next batch, ``text`` the gradient of the
  same batches without their images, ``vision`` what their images add, ``optimizer`` the update, ``reporting`` metrics
  and progress, ``saving`` the part of a checkpoint that holds up the loop, ``other`` the rest.
- ``<stage>_shares``: of the time of joint_rl and parl in rollouts, rewards and updates, and their rollouts' tokens/s.

Bare steps and stages take turns in one process; expect five minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import model.rl.trainer as rl_trainer  # noqa: E402
from components.mid_train.config import Config as MidConfig  # noqa: E402
from components.runtime.step import run_step  # noqa: E402
from components.runtime.steps import config_class  # noqa: E402
from components.runtime.tracking.progress import StepProgress  # noqa: E402
from components.runtime.tracking.tracker import StepMetrics  # noqa: E402
from model.checkpoint.saving import AsyncSaver  # noqa: E402
from model.data.batches.stream import MixtureStream  # noqa: E402
from model.network.batch import Batch  # noqa: E402
from model.network.config import preset  # noqa: E402
from model.rl import rewards  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from pipelines.services import Services, exported  # noqa: E402
from tests.benchmarks.model_speed import Ours, language_model, seconds, show, text_batch  # noqa: E402
from tests.training import LOSS  # noqa: E402

WARM = 20  # steps of a stage that do not count
KEPT = 12  # batches of a stage that are trained on again with and without their images
STAGES = ("joint_pretrain", "mid_train", "zero_vision_sft")
SHORT = {"joint_pretrain": "joint", "mid_train": "mid", "zero_vision_sft": "sft"}


@dataclass
class Watch:
    """Seconds by part and what else is seen of the supervised loop of one stage, from step ``WARM`` on."""

    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    batches: list[Batch] = field(default_factory=list)
    engine: PlainEngine | None = None
    steps: int = 0
    tokens: int = 0  # of the steps so far
    first: tuple[float, int] = (0.0, 0)  # seconds and tokens at step WARM
    last: tuple[float, int] = (0.0, 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.steps >= WARM:
            self.parts[name] += time.perf_counter() - begun

    @property
    def tokens_per_s(self) -> float:
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what the loop calls. A step ends when its progress is shown."""
        batches, backward, update = MixtureStream.batches, PlainEngine.backward, PlainEngine.update
        log, show_progress, save = StepMetrics.log, StepProgress.update, AsyncSaver.save

        def watched_batches(stream: MixtureStream, *args: Any, **settings: Any) -> Iterator[Any]:
            made, before = batches(stream, *args, **settings), 0
            while True:
                with self.part("data"):
                    item = next(made, None)
                if item is None:
                    return
                self.batches = [*self.batches[1 - KEPT :], item[0]]
                after = sum(item[1].tokens.values())
                self.tokens += after - before
                before = after
                yield item

        def watched_backward(engine: PlainEngine, *args: Any, **settings: Any) -> Any:
            self.engine = engine
            with self.part("gradient"):
                return backward(engine, *args, **settings)

        def watched_update(engine: PlainEngine, step: int) -> Any:
            with self.part("optimizer"):
                return update(engine, step)

        def watched_log(*args: Any) -> None:
            with self.part("reporting"):
                log(*args)

        def watched_progress(*args: Any, **figures: Any) -> None:
            with self.part("reporting"):
                show_progress(*args, **figures)
            self.steps += 1
            self.last = time.perf_counter(), self.tokens
            if self.steps == WARM:
                self.first = self.last

        def watched_save(*args: Any, **settings: Any) -> None:
            with self.part("saving"):
                save(*args, **settings)
            self.last = time.perf_counter(), self.tokens

        with ExitStack() as stack:
            for owner, name, watched in (
                (MixtureStream, "batches", watched_batches), (PlainEngine, "backward", watched_backward),
                (PlainEngine, "update", watched_update), (StepMetrics, "log", watched_log),
                (StepProgress, "update", watched_progress), (AsyncSaver, "save", watched_save),
            ):  # fmt: skip
                stack.enter_context(mock.patch.object(owner, name, watched))
            yield


def without_images(batch: Batch) -> Batch:
    """The same tokens; the places of the images hold the embedding of their placeholder."""
    return replace(batch, pixel_values=None, grid_thws=[])


def split_by_part(watch: Watch, repeats: int) -> dict[str, float]:
    """Milliseconds of a step, with the gradient divided into text and vision by training on some batches again."""
    assert watch.engine is not None
    engine = PlainEngine(watch.engine.model.train(), watch.engine.optimization)  # the stage's own is closed

    def taken(batch: Batch) -> float:
        return seconds(lambda: (engine.backward(batch, LOSS), engine.discard()))

    both = [(batch, without_images(batch)) for batch in watch.batches]
    for batch, bare in both[:2]:
        taken(batch), taken(bare)
    pairs = [(taken(batch), taken(bare)) for _ in range(repeats) for batch, bare in both]
    text = sum(bare for _, bare in pairs) / sum(whole for whole, _ in pairs)
    engine.close()
    count = watch.steps - WARM
    gradient = watch.parts["gradient"]
    found = {
        "data": watch.parts["data"],
        "text": gradient * text,
        "vision": gradient * (1 - text),
        "optimizer": watch.parts["optimizer"],
        "reporting": watch.parts["reporting"],
        "saving": watch.parts["saving"],
    }
    whole = watch.last[0] - watch.first[0]
    found |= {"other": whole - sum(found.values()), "step": whole}
    return {name: round(1000 * value / count, 1) for name, value in found.items()}


def bare_step(rows: int, tokens: int, repeats: int) -> dict[str, float]:
    """Tokens per second of model_speed's training step, by optimizer."""
    ours = Ours(language_model(preset("tiny")))
    batches = itertools.cycle([text_batch(seed, rows, tokens) for seed in range(4)])
    steps: dict[str, Callable[[Batch], float]] = {"muonclip": ours.step, "adamw": ours.step_adamw}
    for _ in range(4):
        for step in steps.values():
            step(next(batches))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(seconds(lambda step=step: step(next(batches))))  # type: ignore[misc]
    ours.replicas.close()
    return {name: rows * tokens / statistics.median(values) for name, values in times.items()}


def shape_of(stage: str, config: Any) -> tuple[int, int]:
    """Rows and tokens of a row in the stage's largest step."""
    if isinstance(config, MidConfig):
        window = preset("tiny").text_config.max_position_embeddings
        return config.rows, round(window * config.factors[-1])
    return config.rows, config.tokens_per_row


@contextmanager
def timed(owner: Any, name: str, into: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of a function's calls."""
    function = getattr(owner, name)

    def watched(*args: Any, **settings: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **settings)
        finally:
            into[name] = into.get(name, 0.0) + time.perf_counter() - begun

    with mock.patch.object(owner, name, watched):
        yield


def episodes_stage(step: str, settings: dict[str, Any], inputs: dict[str, str]) -> tuple[str, dict[str, float]]:
    """Run joint_rl or parl; its manifest, and shares of its rounds in rollouts, rewards and updates."""
    spent: dict[str, float] = {}
    tokens = 0
    collect = rl_trainer.RLTrainer.collect

    async def watched_collect(trainer: rl_trainer.RLTrainer) -> Any:
        nonlocal tokens
        begun = time.perf_counter()
        groups, figures = await collect(trainer)
        spent["collect"] = spent.get("collect", 0.0) + time.perf_counter() - begun
        tokens += sum(episode.policy_tokens for group in groups for episode in group.episodes)
        return groups, figures

    with ExitStack() as stack:
        stack.enter_context(timed(rl_trainer, "rewarded_groups", spent))
        stack.enter_context(timed(rewards, "score", spent))
        stack.enter_context(timed(rl_trainer.RLTrainer, "learn", spent))
        stack.enter_context(mock.patch.object(rl_trainer.RLTrainer, "collect", watched_collect))
        uri = run_step(step, settings, inputs).uri
    update, reward = spent["learn"], spent["rewarded_groups"] + spent["score"]
    rollout, whole = spent["collect"] - reward, spent["collect"] + update
    return uri, {
        "rollout": round(rollout / whole, 3),
        "reward": round(reward / whole, 3),
        "update": round(update / whole, 3),
        "tokens_per_s": round(tokens / whole),
        "rollout_tokens_per_s": round(tokens / rollout),
    }


def measure(steps: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Run the stages one after the other, each from the one before it, with the bare step before and after."""
    found: dict[str, Any] = {}
    # Few samples: a stage that reads some of them twice is as fast as one that does not.
    data = run_step("prepare_data", {"text_samples": 6000, "image_samples": 3000, "long_samples": 400}).uri
    parent = run_step("vit_pretrain", {"steps": 4, "projector_steps": 1}, {"data": data}).uri
    for stage in STAGES:
        settings = {"steps": steps * (2 if stage == "mid_train" else 1)}
        rows, tokens = shape_of(stage, config_class(stage).parse(settings, stage))
        bare = [bare_step(rows, tokens, repeats)]
        watch = Watch()
        with watch.watching():
            parent = run_step(stage, settings, {"data": data, "parent": parent}).uri
        bare.append(bare_step(rows, tokens, repeats))
        step, adamw = (statistics.mean(one[name] for one in bare) for name in ("muonclip", "adamw"))
        short, speed = SHORT[stage], watch.tokens_per_s
        found |= {
            f"{short}_over_step": speed / step,
            f"{short}_over_adamw": speed / adamw,
            f"{short}_tokens_per_s": speed,
            f"{short}_step_tokens": rows * tokens,
            f"{short}_ms": split_by_part(watch, repeats=2),
        }
    sft = parent
    settings = {"iterations": rounds, "checkpoint_every": 0}
    rl, found["rl_shares"] = episodes_stage("joint_rl", settings, {"data": data, "parent": sft})
    inputs = {"data": data, "policy": rl, "sub_agents": sft}
    _, found["parl_shares"] = episodes_stage("parl", settings, inputs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each stage")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of joint_rl and of parl")
    parser.add_argument("--repeats", type=int, default=8, help="of the bare step, before and after each stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    if options.steps < 2 * WARM:
        parser.error(f"--steps {options.steps}: give at least {2 * WARM}, the first {WARM} do not count")
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        services = stack.enter_context(Services.start(Path(folder)))
        stack.enter_context(exported(services.environment))
        os.environ |= {"MOONFLOW_RUN_ID": "speed", "MOONFLOW_RUN_DIR": folder}
        result = measure(options.steps, options.rounds, options.repeats)
    result = {"benchmark": "recipe_speed", "threads": options.threads, "cores": len(os.sched_getaffinity(0)), **result}
    show(result, options.json)


if __name__ == "__main__":
    main()
