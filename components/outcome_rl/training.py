"""RL on tasks with verifiable outcomes, as visual RL and joint RL do it (source: K2.5, RL)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing

from components.outcome_rl.config import OutcomeRLConfig
from components.outcome_rl.episodes import EpisodePages
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import SEEN, sampler
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.evals.answer_room import most_turns, need_more
from model.network.served import as_served
from model.rl.environment import Scoring
from model.rl.groups import Group
from model.rl.outcome_training import OutcomeTask, train_policy
from model.rl.prompts import PromptPool
from model.rl.successes import Successes
from model.rl.tasks.mixture import TaskMixture
from model.rl.tasks.names import parse_task_shares, takes_all
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.task import TaskSample
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings, Watch
from model.swarm.families import SWARM_FAMILIES  # PARL trains on them

log = logging.getLogger(__name__)

Judging = Callable[[DataFolder, Scoring, bool], Scoring]
"""(data, the verifiers' score, whether some task that is asked may have a rubric) -> what scores an episode."""


def train_on_outcomes(
    config: OutcomeRLConfig,
    inputs: Mapping[str, str],
    context: StepContext,
    *,
    modalities: Collection[str],
    judging: Judging | None = None,
    watch: Watch | None = None,
    successes: Successes | None = None,
) -> Manifest:
    """Train the policy of the input ``parent`` on the tasks of the input ``data``; returns its newest checkpoint.

    Args:
        modalities: of the data's tasks.
        judging: None scores by the verifiers alone.
        watch: is told of each round on every rank; None: nobody is.
        successes: keeps successful episodes in the checkpoints; None: none are kept.

    Raises:
        MoonflowError: there is nothing to ask, or as ``RLTrainer``.
    """
    # 1. Prompts: train shards of every task family of the modalities, grouped by ability. What cannot be answered in
    # the room that there is would only earn nothing. Tasks of the user's own take their shares of the prompts.
    data = context.data(inputs["data"])
    if passed_over := set(modalities) - set(SEEN[config.engine]):
        context.warn(f"engine {config.engine!r} does not take {', '.join(passed_over)}: it is not trained on")
    shares = parse_task_shares(config.tasks)
    pool: PromptPool | None = None
    if not takes_all(shares):
        unanswerable = need_more(data.families(), config.max_new_tokens)
        if unanswerable and context.ranks.first:
            log.warning(
                "no prompts of %s: their answers need more than max_new_tokens = %d", ", ".join(unanswerable),
                config.max_new_tokens,
            )  # fmt: skip
        pool = PromptPool(
            data.source, data.index, modalities=[name for name in modalities if name not in passed_over],
            seed=config.seed, without=(*SWARM_FAMILIES, *unanswerable),
        )  # fmt: skip

    # 2. Policy. The embedded engine samples from the very weights that are trained, or, while they are trained, from a
    # copy; SGLang replicas get them after each step. Of INT4 experts all have the rounded values, which the trainer's
    # forward uses and an export will hold.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer, context.ranks.expert_share)
    episodes = config.prompts_per_iteration * config.samples_per_prompt
    acting = sampler(
        config, config.endpoints, as_served(model, config.expert_precision), episodes, context, data,
        while_trained=config.max_staleness > 0,
    )  # fmt: skip

    # 3. Environment: tools, episodes, verifiers; a judge of what no program can check, where a task has rubrics.
    with closing(acting), Toolset(sandbox=config.sandbox) as toolset, OwnTasks(list(shares)) as own:
        prompts = TaskMixture(
            own, shares, pool, seed=config.seed, allowed=config.max_failed_episodes, ranks=context.ranks,
            warn=context.warn,
        )  # fmt: skip
        rubrics = pool is None or bool(pool.with_rubrics or shares)
        score: Scoring = judging(data, own.scored, rubrics) if judging is not None else own.scored

        def limits(sample: Sample) -> tuple[int, int]:
            if isinstance(sample, TaskSample):
                return sample.max_turns, sample.max_new_tokens
            return most_turns(sample.family), config.max_new_tokens

        # 4. Train: outcome rewards, Toggle's length budgets in every other phase, and the pre-training loss, so that
        # what text-only SFT wore down comes back and what no prompt asks for stays.
        settings = RLSettings(
            config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
            seed=config.seed, checkpoint_every=config.checkpoint_every, expert_precision=config.expert_precision,
            micro_batch_tokens=config.micro_batch_tokens, max_failed_episodes=config.max_failed_episodes,
            max_staleness=config.max_staleness,
        )  # fmt: skip
        pages = EpisodePages(context, data.tokenizer, config.iterations)

        def watched(t: int, groups: Sequence[Group]) -> None:
            pages(t, groups)
            if watch is not None:
                watch(t, groups)

        task = OutcomeTask(prompts, limits, score, Toggle(), config.ptx_weight, config.ptx_rows)
        train_policy(
            model, data, task, acting, toolset, settings, context, tasks=prompts,
            watch=watched, successes=successes, ranks=context.ranks,
        )  # fmt: skip
    return context.checkpoints.newest
