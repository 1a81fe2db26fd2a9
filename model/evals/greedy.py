"""Greedy scores of one model on held-out tasks, as the arms of an ablation are measured (source: ours)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.evals.score import Score
from model.evals.scorer import Evaluation, chance_levels, measuring_engine
from model.evals.suites import SUITES
from model.network.multimodal import KimiK25
from model.rl.tools.toolset import Toolset


def greedy_scores(
    model: KimiK25,
    data: DataFolder,
    tasks: Mapping[str, Sequence[Sample]],
    *,
    sandbox: str,
    max_batch: int,
    max_failed_episodes: float,
) -> dict[str, Score]:
    """The score of each suite that ``tasks`` names.

    The model speaks for the sub-agents of a swarm as well.

    Args:
        model: in evaluation mode.
        tasks: suite name -> held-out samples.
        sandbox: confinement of model-written programs, see ``Toolset``.
        max_batch: completions generated at the same time.
        max_failed_episodes: share of the episodes that may fail.

    Raises:
        MoonflowError: too many episodes failed.
    """
    engine = measuring_engine(model, max_batch)
    context = model.config.text_config.max_position_embeddings
    with Toolset(sandbox=sandbox) as toolset:
        evaluation = Evaluation(
            data.tokenizer, data.image_config, toolset, temperature=0.0, seed=0,
            max_failed_episodes=max_failed_episodes, max_batch=max_batch,
        )  # fmt: skip
        suites = [SUITES[name] for name in tasks]
        return asyncio.run(evaluation.score(engine, engine, tasks, suites, context))


def constant_scores(tasks: Mapping[str, Sequence[Sample]], *, sandbox: str) -> dict[str, float]:
    """What the best constant answer scores, for each suite that ``tasks`` names; the time is quadratic in their number.

    Args: as of ``greedy_scores``.
    """
    with Toolset(sandbox=sandbox) as toolset:
        return asyncio.run(chance_levels(tasks, toolset))
