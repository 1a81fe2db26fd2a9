"""One arm of the fusion ablation: when should images come, given that their number is fixed? (source: K2.5 Table 1)

The arms of a seed share everything but the schedule: first weights, text and vision samples and their order, budgets
(a tenth of all tokens is vision), batch and learning rate. They start from fresh weights (ours; the paper does not say
where its arms start): the checkpoint of ViT pre-training has seen images, so vision could not begin late for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from components.ablation.fusion import NAME
from components.ablation.fusion.arms import ARMS, COLUMNS
from components.ablation.services import ArmServices, Unfinished
from components.fusion_arm.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import read_state
from model.data.batches.stream import StreamState
from model.data.order.family_shares import TEXT, VISION
from model.data.order.schedule import fusion
from model.data.samples.sample import Sample
from model.evals.greedy import constant_scores, greedy_scores
from model.evals.likelihood import HeldOut, Likelihood
from model.evals.suites import SUITES, held_out
from model.network.multimodal import KimiK25
from model.optimizer.optimization import Optimization
from model.train.first_weights import first_weights
from model.train.loop import train
from model.train.phase import Phase
from model.train.protocol import MetricLog

RESULTS = "results.json"
FAMILIES = list(dict.fromkeys([*TEXT, *VISION, *(family for column in COLUMNS for family in column.families)]))
BUDGET_ERROR = 0.005  # share of its vision tokens by which an arm may miss its budget
DOCUMENT = 100  # tokens: in a short run every vision family may end one document short of its share


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

    # 3. Train, and measure the held-out losses on the way.
    probes = Probes(context.metrics, model, HeldOut.of(data, FAMILIES, config.probe_samples), config)
    if context.checkpoints.latest() is None:
        probes.log({}, 0)
    optimization = Optimization(
        config.steps, config.learning_rate, final_ratio=config.final_ratio, products=config.products
    )
    phase = Phase(stream, optimization, config.checkpoint_every)
    services = ArmServices(context.work, Unfinished(context.checkpoints), probes, context.progress)
    train(model, [phase], data.path, services)

    # 4. The tokens that it was given.
    saved = context.checkpoints.latest()
    assert saved is not None
    position = read_state(saved)["data_position"]
    tokens = trained_tokens(StreamState(**position))
    require_budget(arm.budget, tokens)

    # 5. The losses on all held-out samples, and the scores on held-out tasks.
    model.eval()
    everything = HeldOut.of(data, FAMILIES, config.samples)
    losses = everything.likelihood(model)
    tasks = {suite: held_out(data, SUITES[suite], config.samples) for column in COLUMNS for suite in column.suites}
    found = greedy_scores(
        model, data, tasks, sandbox=config.sandbox, max_batch=config.max_batch,
        max_failed_episodes=config.max_failed_episodes,
    )  # fmt: skip
    chance = constant_scores(tasks, sandbox=config.sandbox)
    scores = {name: asdict(score) for name, score in found.items()}
    result = {
        "name": NAME,
        "arm": config.arm,
        "seed": config.seed,
        "vision_start": arm.vision_start,
        "vision_ratio": arm.vision_ratio,
        "tokens": tokens,
        "scores": scores,
        "chance": chance,
        "losses": {name: each.loss for name, each in losses.items()},
        "bits_per_byte": {name: each.bits_per_byte for name, each in losses.items() if each.text_bytes},
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


class Probes:
    """A metric log that also measures the model's held-out losses, every ``probe_every`` optimizer steps.

    The model is only read: in evaluation mode, no router counts tokens and no attention head is measured.
    """

    def __init__(self, metrics: MetricLog, model: KimiK25, held: HeldOut, config: Config) -> None:
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


def final_metrics(result: Mapping[str, Any], tasks: Mapping[str, list[Sample]]) -> dict[str, float]:
    """The figures for the tracker, named as in other steps that have them."""
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
