"""Evaluation: what training started from and every stage's checkpoint, on the same held-out tasks; then the gate.

Training started from an imported checkpoint, or from an untrained model. What a stage gained or lost is the difference
between neighbouring checkpoints. The last checkpoint gets more tasks than the others, because the gate judges it; so
does an imported one, with which the gate compares it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.evaluate.config import Config
from components.evaluate.decision import DATA_CONTENT, DECISION, TABLE, as_record, as_table, find_champion
from components.evaluate.floors import parse_floors
from components.evaluate.gallery import Gallery, gallery_before, gallery_steps
from components.evaluate.gate import Rules, decide, well_formed
from components.evaluate.kinds import kind_metrics, kind_rows
from components.evaluate.own_data import loss_metrics, losses_before, own_held_out, write_losses
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.runtime.steps import IMPORTED, TRAINING_STEPS, UNTRAINED
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_checked_config, load_model
from model.data.samples.sample import Sample
from model.evals.scorer import Evaluation, Score, Watch, chance_level, measuring_engine
from model.evals.suites import Suite, available, held_out
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.tools.toolset import Toolset

SUB_AGENTS = "zero_vision_sft"  # the frozen sub-agents are those that PARL trains with
RESULTS = "evals.json"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    if not (trained := [step for step in TRAINING_STEPS if step in inputs]):
        raise MoonflowError(f"evaluate has no checkpoint to measure: give it that of {' or '.join(TRAINING_STEPS)}")

    # 1. The same held-out tasks for every checkpoint.
    rules = Rules(parse_floors(config.floors), config.sigmas, config.margin, config.well_formed)
    data = context.data(inputs["data"])
    suites = available(data)
    tasks = {suite.name: held_out(data, suite, config.samples) for suite in suites}
    chance = {name: chance_level(samples) for name, samples in tasks.items()}

    # 2. The checkpoints in the order of the recipe, as they would be served. What an earlier attempt has evaluated is
    # not evaluated again; if only the gate's rules have changed, nothing is.
    start = IMPORTED if IMPORTED in inputs else UNTRAINED
    steps = [start, *trained]
    before = context.checkpoints.latest()
    results, losses = _evaluated_before(before), losses_before(before)
    counts = dict.fromkeys(steps, config.samples_intermediate) | dict.fromkeys((trained[-1], IMPORTED), config.samples)
    shown = gallery_steps(steps)
    shared = {suite.name: min(suite.tasks(counts[step]) for step in shown) for suite in suites}
    gallery = Gallery(tasks, shared, shown, data.tokenizer, data.image_config, gallery_before(before))

    def served(step: str) -> KimiK25:
        return as_served(load_model(context.fetch(inputs[step])), config.expert_precision)

    missing = [step for step in steps if step not in results]
    frozen = served(SUB_AGENTS if SUB_AGENTS in inputs else trained[-1]) if missing else None
    shape = load_checked_config(context.fetch(inputs[trained[-1]])).text_config if missing else None
    own = own_held_out(data, config.samples, shape.max_position_embeddings) if shape is not None else None
    with Toolset(sandbox=config.sandbox) as toolset:
        evaluation = Evaluation(
            data.tokenizer, data.image_config, toolset, config.temperature, config.seed, config.max_failed_episodes
        )
        for done, step in enumerate(steps):
            if step in results:
                continue
            assert frozen is not None
            chosen = {suite.name: tasks[suite.name][: suite.tasks(counts[step])] for suite in suites}
            model = _untrained(context.fetch(inputs[trained[0]]), config.seed) if step == UNTRAINED else None
            model = model or served(step)
            results[step] = asyncio.run(
                _scores(evaluation, model, frozen, chosen, suites, config.max_batch, gallery.watch(step))
            )
            metrics = _metrics(results[step], suites, tasks)
            if own is not None:
                losses[step] = {name: found.loss for name, found in own.likelihood(model).items()}
                metrics |= loss_metrics(losses[step])
            context.metrics.log(metrics, step=done)
            context.progress.update(done + 1, len(steps))
            _write(context.work, results)
            write_losses(context.work, losses)
            gallery.write(context.work)
            context.publish(context.work, kind="evals", complete=False)

    # 3. The gate, also against the model in service.
    rows = _rows(results, steps, suites, tasks)
    content = manifests.read(context.store, inputs["data"]).content_sha256
    champion, about = find_champion(context.store, config.champion, content)
    share = well_formed(results[trained[-1]])
    verdict = decide(
        rows, rules, candidate=trained[-1], start=start, well_formed=share, champion=champion
    )  # fmt: skip
    record = as_record(verdict, manifests.read(context.store, inputs[trained[-1]]), about)
    (context.work / DECISION).write_text(json.dumps(record, indent=2) + "\n")
    (context.work / TABLE).write_text(as_table(record))

    # 4. Everything that later steps and the report need, in the manifest itself.
    _write(context.work, results)
    write_losses(context.work, losses)
    gallery.write(context.work)
    kinds = kind_rows(results, steps)
    extra = {
        "evals": rows,
        **({"own_losses": losses} if losses else {}),
        **({"kinds": kinds} if kinds else {}),
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
    suites: Sequence[Suite], max_batch: int, watch: Watch | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    engine, sub_engine = (measuring_engine(m, max_batch) for m in (model, frozen))
    context = min(m.config.text_config.max_position_embeddings for m in (model, frozen))
    scores: dict[str, Score] = await evaluation.score(engine, sub_engine, tasks, suites, context, watch)
    return {name: asdict(score) for name, score in scores.items()}


def _untrained(checkpoint: Path, seed: int) -> KimiK25:
    """Random weights in the shape of a checkpoint."""
    return new_model(load_checked_config(checkpoint), seed=seed).eval()


def _evaluated_before(partial: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Step -> suite -> score, as far as an earlier attempt got."""
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
    return metrics | kind_metrics(scores)


def _swarm_figures(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], suites: Sequence[Suite]
) -> dict[str, dict[str, dict[str, float]]]:
    """Step -> wide-search suite -> critical steps, parallelism and the like, means over its episodes."""
    searching = [suite.name for suite in suites if suite.family == "wide_search"]
    return {step: {name: scores[name]["figures"] for name in searching} for step, scores in results.items()}
