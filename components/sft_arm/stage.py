"""One arm of the SFT ablation: what do text-only trajectories do for tools on images? (source: K2.5 section 2.2)

All arms start from the same checkpoint. The arms that train read the same number of tokens, by the same lines as the
step ``zero_vision_sft``; a seed gives them the same order of data. The arm ``before`` trains nothing and is measured as
the others are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice

from components.ablation.services import ArmServices, Unfinished
from components.ablation.sft import NAME
from components.ablation.sft.arms import ARMS, SUITES, TWINS
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.sft_arm.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import load_parent, read_state
from model.data.batches.folder import DataFolder
from model.data.batches.stream import StreamState
from model.data.families.programs import UNTRAINED
from model.data.order.mixtures import mixtures
from model.data.samples.sample import Sample
from model.evals.greedy import constant_scores, greedy_scores
from model.evals.score import Score
from model.evals.suites import SUITES as HELD_OUT
from model.evals.suites import available, readable
from model.train.fine_tuning import FineTuning, fine_tune
from model.train.protocol import StepServices

RESULTS = "results.json"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data, and the checkpoint that every arm starts from.
    arm = ARMS[config.arm]
    data = context.data(inputs["data"])
    tasks = held_out_tasks(data, config)
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)

    # 2. Train, as zero_vision_sft does.
    tokens = dict[str, int]()
    if arm.trained:
        tuning = FineTuning(
            config.steps, config.learning_rate, config.tokens_per_row, config.rows, config.seed, config.products,
            checkpoint_every=config.checkpoint_every,
        )  # fmt: skip
        services: StepServices = ArmServices(
            context.work, Unfinished(context.checkpoints), context.metrics, context.progress
        )
        fine_tune(model, data, arm.mixture(mixtures(config.mixture).trajectories), tuning, services)
        saved = context.checkpoints.latest()
        assert saved is not None
        tokens = dict(StreamState(**read_state(saved)["data_position"]).tokens)

    # 3. Measure: tool use on images, and what must not wear down.
    scores = greedy_scores(
        model.eval(), data, tasks, sandbox=config.sandbox, max_batch=config.max_batch,
        max_failed_episodes=config.max_failed_episodes,
    )  # fmt: skip
    chance = constant_scores(tasks, sandbox=config.sandbox)

    # 4. The figures for the tracker, and for the comparison of the arms.
    result = {
        "name": NAME,
        "arm": config.arm,
        "seed": config.seed,
        "tokens": sum(tokens.values()),
        "tokens_by_family": dict(sorted(tokens.items())),
        "untrained": sorted(UNTRAINED),
        "scores": {name: asdict(score) for name, score in scores.items()},
        "chance": chance,
    }
    context.metrics.log(final_metrics(scores, tasks), config.steps if arm.trained else 0)
    folder = context.work / "results"
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    seen = context.checkpoints.newest.tokens_seen if arm.trained else 0
    return context.publish(folder, kind="evals", complete=True, tokens_seen=seen, extra={"ablation": result})


def held_out_tasks(data: DataFolder, config: Config) -> dict[str, list[Sample]]:
    """Suite -> its first held-out tasks, for the suites of the ablation that the data has.

    Raises:
        MoonflowError: the data has none for tool use on images; or as ``readable``.
    """
    there = {suite.name for suite in available(data)}
    if missing := [name for name in TWINS if name not in there]:
        raise MoonflowError(
            f"the data has no held-out tasks of {' and '.join(missing)}, which the arms are measured on: let "
            "prepare_data make the mixture broad"
        )
    counts = {name: config.program_samples if name == TWINS[0] else config.samples for name in SUITES}
    return {
        name: list(islice(readable(data, HELD_OUT[name].family), count))
        for name, count in counts.items()
        if name in there
    }


def final_metrics(scores: Mapping[str, Score], tasks: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """The figures for the tracker, named as in other steps that have them."""
    metrics = {"episodes/failed": float(sum(score.failed for score in scores.values()))}
    for name, score in scores.items():
        first = tasks[name][0]
        metrics[f"eval/{name}/{first.ability}/{first.modality}"] = score.value
        metrics[f"tool_calls/{name}"] = score.tool_calls
        for kind, found in score.kinds.items():
            metrics |= {f"kind/{name}/{kind}/{figure}": float(value) for figure, value in asdict(found).items()}
    return metrics
