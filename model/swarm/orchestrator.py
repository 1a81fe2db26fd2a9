"""Agent Swarm episodes: a trained orchestrator and frozen sub-agents (source: K2.5 paper, Agent Swarm and App. E.8).

The orchestrator may use the task's tools by itself, create named sub-agents, and assign tasks to them; the assignments
of one turn run at the same time. Each is a new conversation with a frozen engine, which sees the sub-agent's system
prompt and the task, and has the task's tools. Only its final message comes back, as an observation, which is masked in
training; the sub-agent's context never enters the orchestrator's. A sub-agent that breaks gives an observation too, and
counts as a failure of the episode.
"""

from __future__ import annotations

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
    FAILED,
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
from model.swarm.critical_steps import CriticalSteps
from model.swarm.recording import RecordedEngine, RecordedTools, Recording, expected_of, question_of
from model.swarm.reward import reward_parts
from model.swarm.trace import Recorder, Trace

SWARM_TOOLS = ("create_subagent", "assign_task")


def agent_tools(sample: Sample, swarm: bool) -> list[str]:
    """What an agent has for a task: its tools, and for an orchestrator those of the swarm too."""
    own = [tool for tool in sample.tools if tool not in SWARM_TOOLS]
    return [*own, *SWARM_TOOLS] if swarm else own


@dataclass(frozen=True)
class SwarmLimits:
    """Limits of one episode (values: ours; the paper's are 15-100 main and 50-100 sub steps at full scale).

    Attributes:
        critical_steps: the budget; an episode without an answer within it ends, in training and in evaluation.
        sub_agent_steps: completions of one sub-agent.
        max_new_tokens: tokens of one completion, of the orchestrator or a sub-agent.
        max_tokens: tokens of one conversation of either, observations included.
    """

    critical_steps: int = 8
    sub_agent_steps: int = 3
    max_new_tokens: int = 160
    max_tokens: int = 512


@dataclass(frozen=True)
class SwarmEpisode(Episode):
    """A trajectory of the orchestrator, with the trace of all agents, which no comparison of episodes looks at."""

    trace: Trace | None = field(default=None, compare=False)


@dataclass
class _Swarm:
    """What has happened in one episode so far.

    Attributes:
        steps: the budget, and what is spent of it.
        recorder, main: write the trace; ``main`` is the orchestrator's part.
        agents: name -> system prompt.
        parallelism: the largest number of assignments at once.
        assigned, finished: how many assignments there were, and how many of them were answered.
        failure: one line on the first sub-agent that broke; "" if none did.
    """

    steps: CriticalSteps
    recorder: Recorder
    main: Recording
    agents: dict[str, str] = field(default_factory=dict)
    parallelism: int = 0
    assigned: int = 0
    finished: int = 0
    failure: str = ""

    @property
    def figures(self) -> dict[str, float]:
        return {
            "critical_steps": float(self.steps.spent),
            "parallelism": float(self.parallelism),
            "subtasks_assigned": float(self.assigned),
            "subtasks_finished": float(self.finished),
        }


@dataclass(frozen=True)
class _Assignment:
    """One task of a group, and the place of its sub-agent in the trace."""

    call: ToolCall
    prompt: TokenizedSample
    at: Recording


class _Orchestrator:
    """Responds to the orchestrator's turns: it uses tools, creates sub-agents, runs assignments at the same time."""

    def __init__(
        self,
        sub_engine: RolloutEngine,
        tokenizer: Tokenizer,
        sample: Sample,
        toolset: Toolset,
        tools: EpisodeTools,
        limits: SwarmLimits,
        temperature: float,
        seed: int,
        swarm: _Swarm,
    ) -> None:
        self.sub_engine, self.tokenizer, self.sample, self.toolset = sub_engine, tokenizer, sample, toolset
        self.tools, self.sub_agent_tools = RecordedTools(tools, swarm.main), agent_tools(sample, swarm=False)
        self.limits, self.seed, self.temperature = limits, seed, temperature
        self.swarm = swarm

    async def respond(self, turn: AssistantTurn) -> list[Message]:
        try:
            return await self._respond(turn)
        finally:
            main = self.swarm.main
            main.main_step, main.critical_step = main.main_step + 1, self.swarm.steps.spent + 1

    async def _respond(self, turn: AssistantTurn) -> list[Message]:
        swarm = self.swarm
        if turn.error is not None:
            swarm.steps.spend(1)
            if swarm.steps.remaining < 1:
                self._end()
            return [complaint(turn)]
        results: dict[str, str] = {}
        assignments: list[_Assignment] = []
        direct = 0
        for call in turn.tool_calls:
            begun = swarm.recorder.now()
            if error := call_error(call, self.sample.tools) or self._unknown_agent(call):
                results[call.id] = error
            elif call.name == "create_subagent":
                swarm.agents[call.arguments["name"]] = call.arguments["system_prompt"]
                results[call.id] = created(call.arguments["name"])
            elif call.name == "assign_task":
                assignment = _Assignment(call, self._prompt(call), self._sub_agent_at(call))
                if len(assignment.prompt.input_ids) < self.limits.max_tokens:
                    assignments.append(assignment)
                    continue
                results[call.id] = "error: the task is too long"
                assignment.at.agent.ended("context")
            else:
                direct += 1
                if direct > swarm.steps.remaining:
                    self._end()
                self.tools.later = direct - 1
                results[call.id] = await self.tools.call(call)
                continue
            swarm.main.tool_call(begun, call, results[call.id])
        main = max(1, direct)
        allowed = min(self.limits.sub_agent_steps, swarm.steps.remaining - main)
        if assignments and allowed < 1:
            self._end()
        spoken = await all_of(self._assigned(each, n, main, allowed) for n, each in enumerate(assignments))
        swarm.steps.spend(main, [episode.turns for episode, _ in spoken])
        swarm.parallelism = max(swarm.parallelism, len(spoken))
        swarm.assigned += len(spoken)
        for each, (episode, told) in zip(assignments, spoken, strict=True):
            swarm.finished += episode.finish_reason == "answer"
            swarm.failure = swarm.failure or (f"sub-agent of {episode.failure}" if episode.failure else "")
            results[each.call.id] = told
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

    def _sub_agent_at(self, call: ToolCall) -> Recording:
        name, main = call.arguments["agent"], self.swarm.main
        agent = self.swarm.recorder.agent(
            name, parent=main.agent, main_step=main.main_step,
            system_prompt=self.swarm.agents[name], task=call.arguments["prompt"],
        )  # fmt: skip
        return Recording(agent, main.main_step)

    async def _assigned(self, each: _Assignment, number: int, main: int, max_turns: int) -> tuple[Episode, str]:
        """Run one assignment; what came of it, and what the orchestrator is told."""
        begun = self.swarm.recorder.now()
        each.at.critical_step = self.swarm.main.critical_step + main
        episode = await attempt(self._sub_agent(each, number, max_turns), self.sample)
        done = episode.finish_reason == "answer"
        told = episode.response if done else f"error: no answer ({episode.finish_reason})"
        each.at.agent.ended(episode.finish_reason, episode.failure)
        self.swarm.main.tool_call(begun, each.call, told, later=main - 1)
        return episode, told

    async def _sub_agent(self, each: _Assignment, number: int, max_turns: int) -> Episode:
        """Run one assignment with the frozen engine, in a separate context."""
        task = replace(self.sample, tools=self.sub_agent_tools)
        async with self.toolset.episode(task) as tools:
            recorded = RecordedTools(tools, each.at)

            async def respond(turn: AssistantTurn) -> list[Message]:
                observed = await answer_calls(recorded, turn)
                each.at.critical_step += 1
                return observed

            return await converse(
                RecordedEngine(self.sub_engine, self.tokenizer, each.at), self.tokenizer, each.prompt, respond,
                max_turns=max_turns, max_new_tokens=self.limits.max_new_tokens, max_tokens=self.limits.max_tokens,
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
    swarm: bool = True,
) -> SwarmEpisode:
    """Run one episode of a wide-search task and score it.

    Args:
        engine: speaks for the orchestrator, which is trained.
        sub_engine: speaks for the sub-agents, which are frozen.
        swarm: False gives the orchestrator nothing but the task's tools: a single agent under the same budget, with
            which a swarm is compared.

    Returns:
        An episode whose metrics have ``critical_steps``, ``parallelism`` (the largest number of assignments at once),
        ``subtasks_assigned`` and ``subtasks_finished``; ``failure`` says which sub-agent broke. An episode that fails
        is returned too (`model.rl.failures.attempt`). Each has its ``trace``.

    Raises:
        Unavailable: something that all episodes need is gone.
    """
    recorder = Recorder()
    system, question = question_of(sample)
    main = recorder.agent("orchestrator" if swarm else "agent", system_prompt=system, task=question)
    done = _Swarm(CriticalSteps(limits.critical_steps), recorder, Recording(main))
    sample = replace(sample, tools=agent_tools(sample, swarm))

    async def played() -> Episode:
        async with toolset.episode(sample, image_config) as tools:
            orchestrator = _Orchestrator(sub_engine, tokenizer, sample, toolset, tools, limits, temperature, seed, done)
            episode = await converse(
                RecordedEngine(engine, tokenizer, done.main), tokenizer,
                tokenize_prompt(sample, tokenizer, image_config), orchestrator.respond,
                max_turns=limits.critical_steps + 1, max_new_tokens=limits.max_new_tokens,
                max_tokens=limits.max_tokens, temperature=temperature, seed=seed,
            )  # fmt: skip
        if episode.finish_reason != "budget":  # nobody responded to the last turn, so it is counted here
            done.steps.spend(min(1, done.steps.remaining))
        episode = replace(episode, metrics=episode.metrics | done.figures, failure=done.failure)
        return await judged(episode, sample, toolset)

    episode = await attempt(played(), sample)
    main.ended(episode.finish_reason, episode.failure if episode.finish_reason == FAILED else "")
    trace = recorder.trace(
        about={"task": f"{sample.family}/{sample.key}"}, question=question, answer=episode.response,
        expected=expected_of(sample.answer), outcome=episode.finish_reason, failure=episode.failure,
        reward=episode.reward, parts=reward_parts(done.figures),
        critical_steps=done.steps.spent, budget=limits.critical_steps,
    )  # fmt: skip
    return SwarmEpisode(**vars(episode), trace=trace)
