"""Agent Swarm episodes: a trained orchestrator and frozen sub-agents (source: K2.5 paper, Agent Swarm and App. E.8).

The orchestrator may use the task's tools by itself, create named sub-agents, and assign tasks to them; the assignments
of one turn run at the same time. Each is a new conversation with a frozen engine, which sees the sub-agent's system
prompt and the task, and has the task's tools. Only its final message comes back, as an observation, which is masked in
training; the sub-agent's context never enters the orchestrator's. A sub-agent that breaks gives an observation too, and
counts as a failure of the episode.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from model.codec.chat import AssistantTurn, Message, ToolCall, encode_chat
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.wide_search import created
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample, tokenize_prompt
from model.rl.environment import (
    Episode,
    EpisodeEnd,
    answer_calls,
    complaint,
    converse,
    derive_seed,
    judged,
    tool_result,
)
from model.rl.failures import all_of, attempt
from model.rl.tools.toolset import EpisodeTools, Toolset, call_error
from model.rollout.protocol import RolloutEngine
from model.swarm.baselines import ContextKeeper, Mode, agent_tools
from model.swarm.critical_steps import CountedEngine, CriticalSteps

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


@dataclass
class _Swarm:
    """What has happened in one episode so far.

    Attributes:
        agents: name -> system prompt.
        parallelism: the largest number of assignments at once.
        assigned, finished: how many assignments there were, and how many of them were answered.
        failure: one line on the first sub-agent that broke; "" if none did.
        largest_sub, sub_tokens: tokens of the longest conversation of a sub-agent, and of all of them.
    """

    steps: CriticalSteps
    agents: dict[str, str] = field(default_factory=dict)
    parallelism: int = 0
    assigned: int = 0
    finished: int = 0
    failure: str = ""
    largest_sub: int = 0
    sub_tokens: int = 0


class _Orchestrator:
    """Responds to the orchestrator's turns: it uses tools, creates sub-agents, runs assignments at the same time."""

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
    ) -> None:
        self.sub_engine, self.tokenizer, self.sample, self.toolset = sub_engine, tokenizer, sample, toolset
        self.tools, self.sub_agent_tools = tools, sub_agent_tools
        self.limits, self.seed, self.temperature = limits, seed, temperature
        self.swarm = _Swarm(CriticalSteps(limits.critical_steps))

    async def respond(self, turn: AssistantTurn) -> list[Message]:
        swarm = self.swarm
        if turn.error is not None:
            swarm.steps.spend(1)
            if swarm.steps.remaining < 1:
                self._end()
            return [complaint(turn)]
        results: dict[str, str] = {}
        assignments: list[tuple[ToolCall, TokenizedSample]] = []
        direct = 0
        for call in turn.tool_calls:
            if error := call_error(call, self.sample.tools) or self._unknown_agent(call):
                results[call.id] = error
            elif call.name == "create_subagent":
                swarm.agents[call.arguments["name"]] = call.arguments["system_prompt"]
                results[call.id] = created(call.arguments["name"])
            elif call.name == "assign_task":
                prompt = self._prompt(call)
                if len(prompt.input_ids) < self.limits.sub_agent_window:
                    assignments.append((call, prompt))
                else:
                    results[call.id] = "error: the task is too long"
            else:
                direct += 1
                if direct > swarm.steps.remaining:
                    self._end()
                results[call.id] = await self.tools.call(call)
        main = max(1, direct)
        allowed = min(self.limits.sub_agent_steps, swarm.steps.remaining - main)
        if assignments and allowed < 1:
            self._end()
        engines = [CountedEngine(self.sub_engine) for _ in assignments]
        spoken = await all_of(
            attempt(self._sub_agent(engine, prompt, n, allowed), self.sample)
            for n, (engine, (_, prompt)) in enumerate(zip(engines, assignments, strict=True))
        )
        swarm.steps.spend(main, [engine.steps for engine in engines])
        swarm.parallelism = max(swarm.parallelism, len(spoken))
        swarm.assigned += len(spoken)
        for (call, _), episode in zip(assignments, spoken, strict=True):
            done = episode.finish_reason == "answer"
            swarm.finished += done
            swarm.failure = swarm.failure or (f"sub-agent of {episode.failure}" if episode.failure else "")
            swarm.largest_sub = max(swarm.largest_sub, len(episode.input_ids))
            swarm.sub_tokens += len(episode.input_ids)
            results[call.id] = episode.response if done else f"error: no answer ({episode.finish_reason})"
        if swarm.steps.remaining < 1:  # there is no step left for the answer
            self._end()
        return [tool_result(call.id, results[call.id]) for call in turn.tool_calls]

    def _end(self) -> NoReturn:
        self.swarm.steps.spend(self.swarm.steps.remaining)
        raise EpisodeEnd("budget")

    def _unknown_agent(self, call: ToolCall) -> str | None:
        if call.name == "assign_task" and call.arguments["agent"] not in self.swarm.agents:
            return f"error: no agent {call.arguments['agent']}"
        return None

    def _prompt(self, call: ToolCall) -> TokenizedSample:
        """The prompt of an assignment's sub-agent."""
        messages = [
            {"role": "system", "content": self.swarm.agents[call.arguments["agent"]]},
            {"role": "user", "content": call.arguments["prompt"]},
        ]
        return as_prompt(encode_chat(messages, self.sub_agent_tools, self.tokenizer, add_generation_prompt=True).ids)

    async def _sub_agent(self, engine: RolloutEngine, prompt: TokenizedSample, number: int, max_turns: int) -> Episode:
        """Run one assignment with the frozen engine, in a separate context."""
        task = replace(self.sample, tools=self.sub_agent_tools)
        async with self.toolset.episode(task) as tools:
            return await converse(
                engine, self.tokenizer, prompt, lambda turn: answer_calls(tools, turn), max_turns=max_turns,
                max_new_tokens=self.limits.max_new_tokens, max_tokens=self.limits.sub_agent_window,
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
) -> Episode:
    """Run one episode of a task that a swarm can divide, and score it.

    Args:
        engine: speaks for the orchestrator, which is trained.
        sub_engine: speaks for the sub-agents, which are frozen.
        mode: "swarm", or one of the baselines that a swarm is compared with, under the same budget.

    Returns:
        An episode whose metrics have ``critical_steps``, ``parallelism`` (the largest number of assignments at once),
        ``subtasks_assigned``, ``subtasks_finished``, ``context_tokens`` (what the context of any of its agents held at
        most), ``total_tokens`` (of all contexts; one that was shortened counts anew), ``seconds`` (wall-clock), and,
        for a task of the world, ``parts``; ``failure`` says which sub-agent broke.

    Raises:
        Exception: as `run_episode`, except that an error in a sub-agent becomes an observation.
    """
    begun, helping = time.perf_counter(), agent_tools(sample, "single")
    sample = replace(sample, tools=agent_tools(sample, mode))
    prompt = tokenize_prompt(sample, tokenizer, image_config)
    keeper = ContextKeeper(mode, prompt, tokenizer, limits.max_tokens)
    async with toolset.episode(sample, image_config) as tools:
        orchestrator = _Orchestrator(sub_engine, tokenizer, sample, toolset, tools, helping, limits, temperature, seed)
        episode = await converse(
            engine, tokenizer, prompt, keeper.watched(orchestrator.respond),
            max_turns=limits.critical_steps + 1, max_new_tokens=limits.max_new_tokens, max_tokens=limits.max_tokens,
            temperature=temperature, seed=seed, shorten=keeper.shorten,
        )  # fmt: skip
    done = orchestrator.swarm
    if episode.finish_reason != "budget":  # nobody responded to the last turn, so it is counted here
        done.steps.spend(min(1, done.steps.remaining))
    metrics = episode.metrics | _metrics(done, keeper, episode, sample) | {SECONDS: time.perf_counter() - begun}
    return await judged(replace(episode, metrics=metrics, failure=done.failure), sample, toolset)


def _metrics(done: _Swarm, keeper: ContextKeeper, episode: Episode, sample: Sample) -> dict[str, float]:
    keeper.note_size(episode.policy_mask)
    figures = {
        "critical_steps": float(done.steps.spent),
        "parallelism": float(done.parallelism),
        "subtasks_assigned": float(done.assigned),
        "subtasks_finished": float(done.finished),
        "context_tokens": float(max(keeper.largest, done.largest_sub)),
        "total_tokens": float(keeper.dropped + len(episode.input_ids) + done.sub_tokens),
    }
    return figures | ({PARTS: float(sample.environment[PARTS])} if PARTS in sample.environment else {})
