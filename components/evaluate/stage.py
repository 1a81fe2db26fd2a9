"""Evaluation: every stage's checkpoint, and the untrained model, on the same held-out tasks; then the gate.

What a stage gained or spoilt is the difference between neighbouring checkpoints. The first and the last get more tasks
than those between, because the gate rests on them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from components.evaluate.config import Config
from components.evaluate.decision import DATA_CONTENT, DECISION, TABLE, as_record, as_table, find_champion
from components.evaluate.floors import parse_floors
from components.evaluate.gate import Rules, decide
from components.runtime import manifest as manifests
from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from components.steps import TRAINING_STEPS
from model.data.sample import Sample
from model.evals.scorer import Evaluation, Score, chance_level
from model.evals.tasks import Suite, available, held_out
from model.hf import load_checked_config, load_model
from model.multimodal import KimiK25
from model.quantization import as_served
from model.rl.tools.toolset import Toolset
from model.rollout.embedded import EmbeddedEngine

UNTRAINED = "init"
SUB_AGENTS = "zero_vision_sft"  # the frozen sub-agents are those that PARL trains with
RESULTS = "evals.json"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. The same held-out tasks for every checkpoint.
    rules = Rules(parse_floors(config.floors), config.sigmas, config.margin, config.well_formed)
    data = context.data(inputs["data"])
    suites = available(data)
    tasks = {suite.name: held_out(data, suite, config.samples) for suite in suites}
    chance = {name: chance_level(samples) for name, samples in tasks.items()}

    # 2. The checkpoints in the order of the recipe, as they would be served. Those that an earlier attempt finished are
    # not evaluated again; where one got to its end and the gate's rules have changed, nothing is.
    trained = [step for step in TRAINING_STEPS if step in inputs]
    steps = [UNTRAINED, *trained]
    results = _finished(context.checkpoints.latest())

    def served(step: str) -> KimiK25:
        return as_served(load_model(context.fetch(inputs[step])), config.expert_precision)

    missing = [step for step in steps if step not in results]
    frozen = served(SUB_AGENTS if SUB_AGENTS in inputs else trained[-1]) if missing else None
    with Toolset(sandbox=config.sandbox) as toolset:
        evaluation = Evaluation(
            data.tokenizer, data.image_config, toolset, config.temperature, config.seed, config.max_failed_episodes
        )
        for done, step in enumerate(steps):
            if step in results:
                continue
            assert frozen is not None
            count = config.samples if step == trained[-1] else config.samples_intermediate
            chosen = {suite.name: tasks[suite.name][: suite.tasks(count)] for suite in suites}
            model = _untrained(context.fetch(inputs[trained[0]]), config.seed) if step == UNTRAINED else None
            model = model or served(step)
            results[step] = asyncio.run(_scores(evaluation, model, frozen, chosen, suites, config.max_batch))
            context.metrics.log(_metrics(results[step], suites, tasks), step=done)
            context.progress.update(done + 1, len(steps))
            _write(context.work, results)
            context.publish(context.work, kind="evals", complete=False)

    # 3. The gate, also against the model in service.
    rows = _rows(results, steps, suites, tasks)
    content = manifests.read(context.store, inputs["data"]).content_sha256
    champion, about = find_champion(context.store, config.champion, content)
    share = _well_formed(results[trained[-1]])
    verdict = decide(
        rows, rules, candidate=trained[-1], untrained=UNTRAINED, well_formed=share, champion=champion
    )  # fmt: skip
    record = as_record(verdict, manifests.read(context.store, inputs[trained[-1]]), about)
    (context.work / DECISION).write_text(json.dumps(record, indent=2) + "\n")
    (context.work / TABLE).write_text(as_table(record))

    # 4. Everything that later steps and the report need, in the manifest itself.
    _write(context.work, results)
    extra = {
        "evals": rows,
        "decision": verdict.decision,
        "reasons": verdict.reasons,
        "candidate": trained[-1],
        "expert_precision": config.expert_precision,
        DATA_CONTENT: content,
        "rules": record["rules"],
        "champion": record["champion"],
        "well_formed": share[0],
        "markdown": as_table(record),  # what the Kubeflow UI shows
        "chance": chance,
        "swarm": _swarm_figures(results, suites),
    }
    tokens = sum(score["tokens"] for scores in results.values() for score in scores.values())
    return context.publish(context.work, kind="evals", complete=True, tokens_seen=tokens, extra=extra)


async def _scores(
    evaluation: Evaluation, model: KimiK25, frozen: KimiK25, tasks: Mapping[str, Sequence[Sample]],
    suites: Sequence[Suite], max_batch: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    engine, sub_engine = (EmbeddedEngine(m, max_batch, prompt_products=torch.bfloat16) for m in (model, frozen))
    context = min(m.config.text_config.max_position_embeddings for m in (model, frozen))
    scores: dict[str, Score] = await evaluation.score(engine, sub_engine, tasks, suites, context)
    return {name: asdict(score) for name, score in scores.items()}


def _well_formed(scores: Mapping[str, Mapping[str, Any]]) -> tuple[float, int]:
    """Share of all episodes that ended with a readable answer, and their number."""
    count = sum(score["n"] for score in scores.values())
    return sum(score["answered"] * score["n"] for score in scores.values()) / count, count


def _untrained(checkpoint: Path, seed: int) -> KimiK25:
    """Random weights in the shape of a checkpoint."""
    return KimiK25(load_checked_config(checkpoint), seed=seed).eval()


def _finished(partial: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Step -> suite -> score, as far as an earlier attempt came."""
    return {} if partial is None else json.loads((partial / RESULTS).read_text())


def _write(folder: Path, results: Mapping[str, Any]) -> None:
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def _rows(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], steps: Sequence[str], suites: Sequence[Suite],
    tasks: Mapping[str, Sequence[Sample]],
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {
            "step": step,
            "suite": suite.name,
            "ability": tasks[suite.name][0].ability,
            "modality": tasks[suite.name][0].modality,
            "value": results[step][suite.name]["value"],
            "stderr": results[step][suite.name]["stderr"],
            "n": results[step][suite.name]["n"],
        }
        for step in steps
        for suite in suites
    ]


def _metrics(
    scores: Mapping[str, Mapping[str, Any]], suites: Sequence[Suite], tasks: Mapping[str, Sequence[Sample]]
) -> dict[str, float]:
    metrics = {"episodes/failed": float(sum(score["failed"] for score in scores.values()))}
    for suite in suites:
        sample, score = tasks[suite.name][0], scores[suite.name]
        metrics[f"eval/{suite.name}/{sample.ability}/{sample.modality}"] = float(score["value"])
    return metrics


def _swarm_figures(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], suites: Sequence[Suite]
) -> dict[str, dict[str, dict[str, float]]]:
    """Step -> wide-search suite -> critical steps, parallelism and the like, means over its episodes."""
    searching = [suite.name for suite in suites if suite.mode != "episode"]
    return {step: {name: scores[name]["figures"] for name in searching} for step, scores in results.items()}
