"""Joint RL over text and image tasks with verifiable outcomes (source: K2.5 section on joint multimodal RL)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing

from components.joint_rl.config import Config
from components.joint_rl.episodes import EpisodePages
from components.joint_rl.judges import with_judge
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import SEEN, sampler
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.data.samples.sample import Sample
from model.evals.suites import SUITES
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.environment import Episode, run_episode
from model.rl.prompts import PromptPool
from model.rl.ptx import ptx
from model.rl.successes import Successes
from model.rl.tasks.mixture import TaskMixture
from model.rl.tasks.names import parse_task_shares, takes_all
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.task import TaskSample
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings, RLTrainer
from model.swarm.families import SWARM_FAMILIES  # PARL trains on them

MAX_TURNS = 3  # a program, a second one after an error, the answer (ours); a suite may allow more

log = logging.getLogger(__name__)


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Prompts: train shards of every task family, grouped by ability, text and image alike. What cannot be answered
    # in the room that there is would only earn nothing. Tasks of the user's own take their shares of the prompts.
    data = context.data(inputs["data"])
    modalities = [name for name in config.modalities.split(",") if name in SEEN[config.engine]]
    if passed_over := set(config.modalities.split(",")) - set(modalities):
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
            data.source, data.index, modalities=modalities, seed=config.seed, without=(*SWARM_FAMILIES, *unanswerable)
        )
    most_turns = {suite.family: max(MAX_TURNS, suite.max_turns) for suite in SUITES.values()}

    # 2. Policy. The embedded engine samples from the very weights that are trained, or, while they are trained, from a
    # copy; SGLang replicas get them after each step. Of INT4 experts all have the rounded values, which the trainer's
    # forward uses and an export will hold.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)
    context_tokens = model.config.text_config.max_position_embeddings
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

        score = with_judge(config, inputs, context, data, own.scored)
        if config.judge and pool is not None and not (pool.with_rubrics or shares):
            context.warn(f"judge {config.judge} has nothing to judge: no task that is asked has a rubric")

        async def rollout(sample: Sample, seed: int, _: int) -> Episode:
            turns, tokens = most_turns.get(sample.family, MAX_TURNS), config.max_new_tokens
            if isinstance(sample, TaskSample):
                turns, tokens = sample.max_turns, sample.max_new_tokens
            return await run_episode(
                acting.engine, data.tokenizer, sample, data.image_config, toolset,
                max_turns=turns, max_new_tokens=tokens, max_tokens=context_tokens,
                temperature=1.0, seed=seed, score=score,
            )  # fmt: skip

        async def publish(policy: KimiK25) -> None:
            await acting.publish(as_served(policy, config.expert_precision))

        # 4. Train: outcome rewards, Toggle's length budgets in every other phase, and the pre-training loss, so that
        # what text-only SFT wore down comes back and what no prompt asks for stays.
        settings = RLSettings(
            config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
            seed=config.seed, checkpoint_every=config.checkpoint_every, expert_precision=config.expert_precision,
            micro_batch_tokens=config.micro_batch_tokens, max_failed_episodes=config.max_failed_episodes,
            max_staleness=config.max_staleness,
        )  # fmt: skip
        kept = Successes(config.kept_successes, config.kept_per_prompt, config.kept_reward)
        RLTrainer(
            model, prompts, rollout, publish, settings,
            pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path, services=context, toggle=Toggle(),
            ptx=ptx(data, weight=config.ptx_weight, rows=config.ptx_rows, tokens=context_tokens, seed=config.seed),
            tasks=prompts, watch=EpisodePages(context, data.tokenizer, config.iterations),
            successes=kept if config.kept_successes else None, ranks=context.ranks,
        ).train()  # fmt: skip
    return context.checkpoints.newest


def need_more(families: Iterable[str], max_new_tokens: int) -> list[str]:
    """The families of ``families`` whose suite allows longer completions than ``max_new_tokens``, sorted; not those of
    a swarm, which are left out anyway."""
    longest: dict[str, int] = {}
    for suite in SUITES.values():
        longest[suite.family] = max(longest.get(suite.family, 0), suite.max_new_tokens)
    found = (name for name in families if longest.get(name, 0) > max_new_tokens and name not in SWARM_FAMILIES)
    return sorted(found)
