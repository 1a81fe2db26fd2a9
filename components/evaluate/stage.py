"""Evaluation: what training started from and every stage's checkpoint, on the same held-out tasks; then the gate.

Training started from an imported checkpoint, or from an untrained model. What a stage gained or lost is the difference
between neighbouring checkpoints. The last checkpoint gets more tasks than the others, because the gate judges it; so
does an imported one, with which the gate compares it. Where the last one's score is too close to a floor to tell, it
gets more still (`components.evaluate.more_tasks`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from components.evaluate.config import Config
from components.evaluate.decision import DATA_CONTENT, DECISION, TABLE, as_record, as_table, find_champion
from components.evaluate.floors import parse_floors
from components.evaluate.gallery import Gallery, gallery_before, gallery_steps
from components.evaluate.gate import Rules, decide, near_floors, well_formed
from components.evaluate.kinds import kind_metrics, kind_rows
from components.evaluate.measuring import Measuring
from components.evaluate.more_tasks import MoreTasks, Outcomes, as_scores, outcomes_before, write_outcomes
from components.evaluate.own_data import loss_metrics, losses_before, own_held_out, write_losses
from components.evaluate.traces import TracedWatch
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import SEEN
from components.runtime.step import StepContext
from components.runtime.steps import IMPORTED, TRAINING_STEPS, UNTRAINED
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_checked_config
from model.data.samples.sample import Sample
from model.evals.own_suites import own_chance, own_prompts, own_suite
from model.evals.scorer import Evaluation, chance_levels
from model.evals.suites import Suite, available, held_out
from model.rl.environment import PART
from model.rl.tasks.names import parse_tasks
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.process import TaskFailure
from model.rl.tools.toolset import Toolset

RESULTS = "evals.json"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    with OwnTasks(parse_tasks(config.tasks)) as own, ExitStack() as opened:
        return _evaluated(config, inputs, context, own, opened)


def _evaluated(
    config: Config, inputs: dict[str, str], context: StepContext, own: OwnTasks, opened: ExitStack
) -> Manifest:
    if not (trained := [step for step in TRAINING_STEPS if step in inputs]):
        raise MoonflowError(f"evaluate has no checkpoint to measure: give it that of {' or '.join(TRAINING_STEPS)}")

    # 1. The same held-out tasks for every checkpoint; then those of the user's own.
    floors = parse_floors(config.floors, own=[task.short_name for task in own])
    rules = Rules(floors, config.sigmas, config.margin, config.well_formed)
    data = context.data(inputs["data"])
    suites = available(data)
    tasks = {suite.name: held_out(data, suite, config.samples) for suite in suites}
    unseen = [suite.name for suite in suites if tasks[suite.name][0].modality not in SEEN[config.engine]]
    if unseen:
        context.warn(f"engine {config.engine!r} takes no videos: {', '.join(unseen)} are not measured")
    suites = [suite for suite in suites if suite.name not in unseen]
    toolset = opened.enter_context(Toolset(sandbox=config.sandbox))
    chance = asyncio.run(chance_levels({suite.name: tasks[suite.name] for suite in suites}, toolset))
    for task in own:
        try:
            prompts = own_prompts(task, config.samples, config.max_failed_episodes)
        except TaskFailure as failure:
            context.warn(f"a task is not evaluated: {failure}")
            continue
        suites.append(own_suite(task))
        tasks[task.short_name], chance[task.short_name] = list(prompts), own_chance(task, prompts, toolset)

    # 2. The checkpoints in the order of the recipe, as they would be served. What an earlier attempt has evaluated is
    # not evaluated again.
    start, final = IMPORTED if IMPORTED in inputs else UNTRAINED, trained[-1]
    steps = [start, *trained]
    before = context.checkpoints.latest()
    only_rules = before is not None and context.checkpoints.newest.complete
    results, losses, outcomes = _evaluated_before(before), losses_before(before), outcomes_before(before)
    counts = dict.fromkeys(steps, config.samples_intermediate) | dict.fromkeys((final, IMPORTED), config.samples)
    shown = gallery_steps(steps)
    shared = {suite.name: min(suite.tasks(counts[step]) for step in shown) for suite in suites}
    asked = {suite.name: tasks[suite.name] for suite in suites}
    gallery = Gallery(asked, shared, shown, data.tokenizer, data.image_config, gallery_before(before))
    missing = [step for step in steps if step not in results]
    shape = load_checked_config(context.fetch(inputs[final])).text_config if missing else None
    held = own_held_out(data, config.samples, shape.max_position_embeddings) if shape is not None else None
    evaluation = Evaluation(
        data.tokenizer, data.image_config, toolset, config.temperature, config.seed, config.max_failed_episodes, own,
        config.max_batch,
    )  # fmt: skip
    measuring = Measuring(config, inputs, context, data, evaluation, opened)

    def save() -> None:
        _write(context.work, results)
        write_outcomes(context.work, outcomes)
        write_losses(context.work, losses)
        gallery.write(context.work)

    def measured(step: str, found: Outcomes) -> None:
        """Log and publish what is known of a checkpoint now."""
        for name in [name for name in results.get(step, asked) if name not in found]:
            context.warn(f"{name} is not in the scores of {step}: too many of its episodes failed; see the log")
        results[step] = as_scores(found)
        if step == final:
            outcomes.clear()
            outcomes.update(found)
        figures = _metrics(results[step], suites, tasks) | loss_metrics(losses.get(step, {}))
        context.metrics.log(figures, step=steps.index(step))
        save()
        context.publish(context.work, kind="evals", complete=False)

    for done, step in enumerate(steps):
        if step in results:
            continue
        chosen = {suite.name: tasks[suite.name][: suite.tasks(counts[step])] for suite in suites}
        shows = gallery.watch(step)
        found = measuring.outcomes(step, chosen, suites, None if shows is None else TracedWatch(context, step, shows))
        if held is not None:
            losses[step] = {name: each.loss for name, each in held.likelihood(measuring.model(step)).items()}
        context.progress.update(done + 1, len(steps))
        measured(step, found)

    # 3. More tasks for the suites whose score cannot tell on which side of a floor it is. If only the gate's rules have
    # changed, the scores stay as they are: what was published as complete is not measured any more.
    more, rounds = MoreTasks(config, context, data, own), 0
    while near := near_floors(_rows(results, [final], suites, tasks), rules, final):
        close = [suite for suite in suites if suite.name in near]
        if not (added := more.next_round(close, outcomes)):
            break
        if only_rules:
            told = ", ".join(added)
            context.warn(f"{told}: too few tasks to tell a floor; a new run measures more, corrected rules do not")
            break
        context.progress.update(len(steps) + rounds, len(steps) + rounds + 1)
        asking = [suite for suite in close if suite.name in added]
        measured(final, measuring.outcomes(final, added, asking, before=outcomes))
        rounds += 1
        context.progress.update(len(steps) + rounds, len(steps) + rounds)

    # 4. The gate, also against the model in service.
    rows = _rows(results, steps, suites, tasks)
    content = manifests.read(context.store, inputs["data"]).content_sha256
    champion, about = find_champion(context.store, config.champion, content)
    share = well_formed(results[final], {suite.name: suite.tasks(config.samples) for suite in suites})
    verdict = decide(rows, rules, candidate=final, start=start, well_formed=share, champion=champion)
    record = as_record(verdict, manifests.read(context.store, inputs[final]), about)
    (context.work / DECISION).write_text(json.dumps(record, indent=2) + "\n")
    (context.work / TABLE).write_text(as_table(record))

    # 5. Everything that later steps and the report need, in the manifest itself.
    save()
    kinds = kind_rows(results, steps)
    extra = {
        "evals": rows,
        **({"own_losses": losses} if losses else {}),
        **({"kinds": kinds} if kinds else {}),
        "decision": verdict.decision,
        "reasons": verdict.reasons,
        "candidate": final,
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
        if suite.name in results[step]
    ]


def _metrics(
    scores: Mapping[str, Mapping[str, Any]], suites: Sequence[Suite], tasks: Mapping[str, Sequence[Sample]]
) -> dict[str, float]:
    metrics = {"episodes/failed": float(sum(score["failed"] for score in scores.values()))}
    for suite in suites:
        if suite.name not in scores:  # a user's task that failed too often
            continue
        sample, score = tasks[suite.name][0], scores[suite.name]
        name = f"eval/{suite.name}/{sample.ability}/{sample.modality}"
        metrics[name] = float(score["value"])
        parts = {part: value for part, value in score["figures"].items() if part.startswith(PART)}
        metrics |= {f"{name}/{part.removeprefix(PART)}": float(value) for part, value in parts.items()}
    return metrics | kind_metrics(scores)


def _swarm_figures(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], suites: Sequence[Suite]
) -> dict[str, dict[str, dict[str, float]]]:
    """Step -> wide-search suite -> critical steps, parallelism and the like, means over its episodes."""
    searching = [suite.name for suite in suites if suite.family == "wide_search"]
    return {step: {name: scores[name]["figures"] for name in searching} for step, scores in results.items()}
