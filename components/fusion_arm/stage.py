"""One arm of the fusion ablation: when should images come, given that their number is fixed? (source: K2.5 Table 1)

The arms of a seed share everything but the schedule: first weights, text and vision samples and their order, budgets
(a tenth of all tokens is vision), batch and learning rate. They start from fresh weights (ours; the paper does not say
where its arms start): the checkpoint of ViT pre-training has seen images, so nothing could come late to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from components.fusion_arm.arms import ARMS, COLUMNS
from components.fusion_arm.config import Config
from components.joint_pretrain.stage import fusion
from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from components.vit_pretrain.stage import first_weights
from model.data.folder import DataFolder
from model.data.mixtures import TEXT, VISION
from model.data.sample import Sample
from model.data.stream import StreamState
from model.errors import MoonflowError
from model.evals.likelihood import HeldOut, Likelihood
from model.evals.scorer import Evaluation, chance_level
from model.evals.tasks import SUITES, held_out
from model.multimodal import KimiK25
from model.rl.tools.toolset import Toolset
from model.rollout.embedded import EmbeddedEngine
from model.train.checkpoint import read_state
from model.train.loop import train
from model.train.phase import Phase
from model.train.protocol import Checkpoints, Metrics, Progress, Publication

RESULTS = "results.json"
FAMILIES = list(dict.fromkeys([*TEXT, *VISION, *(family for column in COLUMNS for family in column.families)]))
BUDGET_ERROR = 0.005  # of the vision tokens: what the arms may differ in
DOCUMENT = 100  # tokens: in a short run every vision family may end one document behind its share


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: text alone until vision begins, then both at a constant ratio.
    arm = ARMS[config.arm]
    data = context.data(inputs["data"])
    stream = data.mixture(
        fusion(arm.vision_ratio, arm.vision_start),
        tokens_per_row=config.tokens_per_row,
        rows=config.rows,
        seed=config.seed,
        steps=config.steps,
    )

    # 2. Model: the first weights of this seed.
    model = first_weights(config.preset, data.tokenizer, config.seed)

    # 3. Train, looking at the held-out losses on the way.
    probes = Probes(context.metrics, model, HeldOut.of(data, FAMILIES, config.probe_samples), config)
    if context.checkpoints.latest() is None:
        probes.log({}, 0)
    phase = Phase(
        stream,
        config.steps,
        config.learning_rate,
        final_ratio=config.final_ratio,
        checkpoint_every=config.checkpoint_every,
        products=config.products,
    )
    train(model, [phase], data.path, Around(context.work, Unfinished(context.checkpoints), probes, context.progress))

    # 4. What it was given, to the token.
    saved = context.checkpoints.latest()
    assert saved is not None
    position = read_state(saved)["data_position"]
    tokens = trained_tokens(StreamState(**position))
    require_budget(arm.budget, tokens)

    # 5. What it can do: losses on all held-out samples, and answers to held-out tasks.
    model.eval()
    everything = HeldOut.of(data, FAMILIES, config.samples)
    losses = everything.likelihood(model)
    tasks = {suite: held_out(data, SUITES[suite], config.samples) for column in COLUMNS for suite in column.suites}
    scores = answers(config, data, model, tasks)
    chance = {suite: chance_level(samples) for suite, samples in tasks.items()}
    result = {
        "arm": config.arm,
        "seed": config.seed,
        "vision_start": arm.vision_start,
        "vision_ratio": arm.vision_ratio,
        "tokens": tokens,
        "scores": scores,
        "chance": chance,
        "losses": {name: found.loss for name, found in losses.items()},
        "bits_per_byte": {name: found.bits_per_byte for name, found in losses.items() if found.text_bytes},
        "columns": {
            column.name: {
                "score": mean([scores[suite]["value"] for suite in column.suites]),
                "loss": mean([losses[family].loss for family in column.families]),
                "chance": mean([chance[suite] for suite in column.suites]),
            }
            for column in COLUMNS
        },
    }
    context.metrics.log(final_metrics(result, tasks), config.steps)
    folder = context.work / "results"
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    seen = context.checkpoints.newest.tokens_seen
    return context.publish(folder, kind="evals", complete=True, tokens_seen=seen, extra={"ablation": result})


@dataclass(frozen=True)
class Around:
    """``model.train.protocol.Surroundings``."""

    work: Path
    checkpoints: Checkpoints
    metrics: Metrics
    progress: Progress


class Unfinished:
    """Checkpoints none of which ends the step: after the last one there is still something to measure."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def latest(self) -> Path | None:
        return self._checkpoints.latest()

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Publication:
        return self._checkpoints.prepare(index=index, tokens_seen=tokens_seen, complete=False)


class Probes:
    """Metrics that now and then look at the held-out losses of the model in training, too.

    The model is only read: it is in evaluation mode meanwhile, in which no router counts and no head is measured.
    """

    def __init__(self, metrics: Metrics, model: KimiK25, held: HeldOut, config: Config) -> None:
        self._metrics, self._model, self._held, self._config = metrics, model, held, config

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        found: dict[str, float] = {}
        if step % self._config.probe_every == 0 or step == self._config.steps:
            found = loss_metrics(self._held.likelihood(self._model))
        self._metrics.log({**metrics, **found}, step)


def loss_metrics(losses: Mapping[str, Likelihood]) -> dict[str, float]:
    """``held_out/<family>`` in nats a target; ``held_out/text`` and ``held_out/vision`` are means over families."""
    found = {f"held_out/{name}": losses[name].loss for name in losses}
    for modality, mixture in (("text", TEXT), ("vision", VISION)):
        found[f"held_out/{modality}"] = mean([losses[name].loss for name in mixture])
    return found


def trained_tokens(position: StreamState) -> dict[str, int]:
    """Tokens of vision documents, their words included, and of text documents that were trained on."""
    return {"vision": position.vision, "text": sum(position.tokens.values()) - position.vision}


def require_budget(share: float, tokens: Mapping[str, int]) -> None:
    """MoonflowError unless ``share`` of the tokens were vision, to half a percent or a document of every family."""
    whole = tokens["vision"] + tokens["text"]
    allowed = max(BUDGET_ERROR * share * whole, DOCUMENT * len(VISION))
    if abs(tokens["vision"] - share * whole) > allowed:
        raise MoonflowError(
            f"{tokens['vision']} of {whole} tokens were vision, the arm's budget is {share * whole:.0f}: raise steps"
        )


def answers(
    config: Config, data: DataFolder, model: KimiK25, tasks: Mapping[str, list[Sample]]
) -> dict[str, dict[str, Any]]:
    """Greedy scores of the columns' suites, as the step ``evaluate`` has them."""
    suites = [SUITES[name] for name in tasks]
    engine = EmbeddedEngine(model, config.max_batch, prompt_products=torch.bfloat16)
    context = model.config.text_config.max_position_embeddings
    with Toolset(sandbox=config.sandbox) as toolset:
        evaluation = Evaluation(
            data.tokenizer, data.image_config, toolset, temperature=0.0, seed=0,
            max_failed_episodes=config.max_failed_episodes,
        )  # fmt: skip
        scores = asyncio.run(evaluation.score(engine, engine, tasks, suites, context))
    return {name: asdict(score) for name, score in scores.items()}


def final_metrics(result: Mapping[str, Any], tasks: Mapping[str, list[Sample]]) -> dict[str, float]:
    """For the tracker; the names are those of other steps where they have the figure, too."""
    metrics = {f"tokens/{modality}": float(count) for modality, count in result["tokens"].items()}
    metrics |= {f"final/{name}": value for name, value in result["losses"].items()}
    metrics |= {f"bits_per_byte/{name}": value for name, value in result["bits_per_byte"].items()}
    metrics["episodes/failed"] = float(sum(score["failed"] for score in result["scores"].values()))
    for name, score in result["scores"].items():
        metrics[f"eval/{name}/{tasks[name][0].ability}/{tasks[name][0].modality}"] = float(score["value"])
    for column, measures in result["columns"].items():
        for measure, value in measures.items():
            metrics[f"column/{column.replace(' ', '_')}/{measure}"] = value
    return metrics


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
