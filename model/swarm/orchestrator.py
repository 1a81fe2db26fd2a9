"""Agent Swarm episodes: a trained orchestrator and frozen sub-agents (source: K2.5 paper, Agent Swarm and App. E.8).

The orchestrator may use the task's tools by itself, create named sub-agents, and assign tasks to them; the assignments
of one turn run at the same time. Each is a new conversation with a frozen engine, which sees the sub-agent's system
prompt and the task, and has the task's tools. Only its final message comes back, as an observation, which is masked in
training; the sub-agent's context never enters the orchestrator's. A sub-agent that breaks gives an observation too, and
is counted; the episode fails only where the orchestrator itself cannot go on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch

from model.codec.chat import AssistantTurn, Message, ToolCall, encode_chat
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample, tokenize_prompt
from model.rl.environment import (
    FAILED,
    Episode,
    EpisodeEnd,
    Scoring,
    answer_calls,
    complaint,
    converse,
    derive_seed,
    judged,
    tool_result,
)
from model.rl.failures import attempt
from model.rl.tools.toolset import EpisodeTools, Toolset, call_error
from model.rollout.protocol import RolloutEngine
from model.swarm.baselines import ContextKeeper, Mode, agent_tools
from model.swarm.critical_steps import CountedEngine, CriticalSteps
from model.swarm.recording import RecordedEngine, RecordedTools, expected_of, question_of
from model.swarm.reward import reward_parts
from model.swarm.trace import Recorder, Recording, Trace
from model.swarm.turns import Assignment, BudgetSpent, Finished, Swarm

SECONDS = "seconds"
"""The metric that differs from one run of an episode to the next."""
PARTS = "parts"
"""The metric, and the field of a task's environment, that say into how many parts the task falls."""


@dataclass(frozen=True)
class SwarmLimits:
    """Limits of one episode (values: ours; the paper's are 15-100 main and 50-100 sub steps at full scale).

    Attributes:
        critical_steps: the budget; an episode without an answer within it ends, in training and in evaluation.
        sub_agent_steps: completions of one sub-agent.
        max_new_tokens: tokens of one completion, of the orchestrator or a sub-agent.
        max_tokens: the orchestrator's window: tokens of its conversation, observations included.
        sub_agent_tokens: a sub-agent's window; None: as large.
    """

    critical_steps: int = 8
    sub_agent_steps: int = 3
    max_new_tokens: int = 160
    max_tokens: int = 512
    sub_agent_tokens: int | None = None

    @property
    def sub_agent_window(self) -> int:
        """Tokens of one conversation of a sub-agent."""
        return self.max_tokens if self.sub_agent_tokens is None else self.sub_agent_tokens


@dataclass(frozen=True)
class SwarmEpisode(Episode):
    """A trajectory of the orchestrator, with the trace of all agents, which no comparison of episodes looks at."""

    trace: Trace | None = field(default=None, compare=False)


class _Orchestrator:
    """Responds to the orchestrator's turns; the ``Hands`` of its swarm."""

    def __init__(
        self,
        sub_engine: RolloutEngine,
        tokenizer: Tokenizer,
        sample: Sample,
        toolset: Toolset,
        tools: EpisodeTools,
        sub_agent_tools: list[str],
        limits: SwarmLimits,
        temperature: float,
        seed: int,
        swarm: Swarm,
    ) -> None:
        self.sub_engine, self.tokenizer, self.sample, self.toolset = sub_engine, tokenizer, sample, toolset
        self.tools, self.sub_agent_tools = tools, sub_agent_tools
        self.limits, self.seed, self.temperature = limits, seed, temperature
        self.swarm = swarm

    async def respond(self, turn: AssistantTurn) -> list[Message]:
        try:
            if turn.error is not None:
                self.swarm.misspoke()
                return [complaint(turn)]
            results = await self.swarm.respond(turn.tool_calls, self)
        except BudgetSpent:
            raise EpisodeEnd("budget") from None
        return [tool_result(call.id, result) for call, result in zip(turn.tool_calls, results, strict=True)]

    def refusal(self, call: ToolCall) -> str | None:
        return call_error(call, self.sample.tools)

    async def use(self, call: ToolCall) -> str:
        return await self.tools.call(call)

    def prepare(self, call: ToolCall, system_prompt: str) -> TokenizedSample | None:
        messages = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": call.arguments["prompt"]},
        ]
        encoded = encode_chat(messages, self.sub_agent_tools, self.tokenizer, add_generation_prompt=True)
        return as_prompt(encoded.ids) if len(encoded.ids) < self.limits.sub_agent_window else None

    async def work(self, assignment: Assignment[TokenizedSample], number: int, allowed: int) -> Finished:
        engine = CountedEngine(self.sub_engine)  # counts the completions of one that breaks too
        episode = await attempt(self._sub_agent(engine, assignment, number, allowed), self.sample)
        failure = f"sub-agent of {episode.failure}" if episode.failure else ""
        return Finished(engine.steps, episode.finish_reason, episode.response, failure, len(episode.input_ids))

    async def _sub_agent(
        self, engine: RolloutEngine, assignment: Assignment[TokenizedSample], number: int, max_turns: int
    ) -> Episode:
        """Run one assignment with the frozen engine, in a separate context."""
        task, at = replace(self.sample, tools=self.sub_agent_tools), assignment.at
        async with self.toolset.episode(task) as tools:
            recorded = RecordedTools(tools, at)

            async def respond(turn: AssistantTurn) -> list[Message]:
                observed = await answer_calls(recorded, turn)
                at.critical_step += 1
                return observed

            return await converse(
                RecordedEngine(engine, self.tokenizer, at), self.tokenizer, assignment.prompt, respond,
                max_turns=max_turns, max_new_tokens=self.limits.max_new_tokens,
                max_tokens=self.limits.sub_agent_window,
                temperature=self.temperature, seed=derive_seed(self.seed, self.swarm.steps.spent, number, 1),
            )  # fmt: skip


def as_prompt(ids: list[int]) -> TokenizedSample:
    """Token ids [T] of a text as a prompt without media."""
    return TokenizedSample(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool), None, [])


async def run_swarm_episode(
    engine: RolloutEngine,
    sub_engine: RolloutEngine,
    tokenizer: Tokenizer,
    sample: Sample,
    image_config: ImageConfig,
    toolset: Toolset,
    *,
    limits: SwarmLimits,
    temperature: float,
    seed: int,
    mode: Mode = "swarm",
    score: Scoring = judged,
) -> SwarmEpisode:
    """Run one episode of a task that a swarm can divide, and score it.

    Args:
        engine: speaks for the orchestrator, which is trained.
        sub_engine: speaks for the sub-agents, which are frozen.
        mode: "swarm", or one of the baselines that a swarm is compared with, under the same budget.
        score: gives the episode its reward.

    Returns:
        An episode whose metrics have ``critical_steps``, ``parallelism`` (the largest number of assignments at once),
        ``subtasks_assigned``, ``subtasks_finished``, ``sub_agents_failed`` (how many broke), ``context_tokens`` (what
        the context of any of its agents held at most), ``total_tokens`` (of all contexts; one that was shortened counts
        anew), ``seconds`` (wall-clock), and, for a task of the world, ``parts``; ``lost`` says which sub-agent broke.
        An episode that fails is returned too (`model.rl.failures.attempt`). Each has its ``trace``.

    Raises:
        Unavailable: something that all episodes need is gone.
    """
    begun, recorder, sub_agent_tools = time.perf_counter(), Recorder(), agent_tools(sample, "single")
    system, question = question_of(sample)
    leader = "orchestrator" if mode in ("swarm", "must_delegate") else "agent"
    main = recorder.agent(leader, system_prompt=system, task=question)
    swarm = Swarm(CriticalSteps(limits.critical_steps), limits.sub_agent_steps, recorder, Recording(main))
    sample = replace(sample, tools=agent_tools(sample, mode))

    async def played() -> Episode:
        prompt = tokenize_prompt(sample, tokenizer, image_config)
        keeper = ContextKeeper(mode, prompt, tokenizer, limits.max_tokens)
        async with toolset.episode(sample, image_config) as tools:
            orchestrator = _Orchestrator(
                sub_engine, tokenizer, sample, toolset, tools, sub_agent_tools, limits, temperature, seed, swarm
            )
            episode = await converse(
                RecordedEngine(engine, tokenizer, swarm.main), tokenizer, prompt, keeper.watched(orchestrator.respond),
                max_turns=limits.critical_steps + 1, max_new_tokens=limits.max_new_tokens,
                max_tokens=limits.max_tokens, temperature=temperature, seed=seed, shorten=keeper.shorten,
            )  # fmt: skip
        swarm.ended(episode.turns)
        figures = swarm.figures | _sizes(swarm, keeper, episode, sample) | {SECONDS: time.perf_counter() - begun}
        episode = replace(episode, metrics=episode.metrics | figures, lost=swarm.failure)
        return await score(episode, sample, toolset)

    episode = await attempt(played(), sample)
    main.ended(episode.finish_reason, episode.failure if episode.finish_reason == FAILED else "")
    trace = recorder.trace(
        about={"task": f"{sample.family}/{sample.key}"}, question=question, answer=episode.response,
        expected=expected_of(sample.answer), outcome=episode.finish_reason, failure=episode.failure or swarm.failure,
        reward=episode.reward, parts=reward_parts(swarm.figures),
        critical_steps=swarm.steps.spent, budget=limits.critical_steps,
    )  # fmt: skip
    return SwarmEpisode(**vars(episode), trace=trace)


def _sizes(swarm: Swarm, keeper: ContextKeeper, episode: Episode, sample: Sample) -> dict[str, float]:
    """What the contexts of an episode held, and into how many parts its task falls."""
    keeper.note_size(episode.policy_mask)
    figures = {
        "context_tokens": float(max(keeper.largest, swarm.largest_sub)),
        "total_tokens": float(keeper.dropped + len(episode.input_ids) + swarm.sub_tokens),
    }
    return figures | ({PARTS: float(sample.environment[PARTS])} if PARTS in sample.environment else {})
