"""What a turn of an orchestrator does, and what it costs (source: K2.5 paper, PARL and App. E.8).

It is the same over token ids (`model.swarm.orchestrator`) and over chat messages (`model.swarm.chat`).

``Swarm`` decides: which calls are refused, which sub-agents exist, how many steps are left and how they are counted. It
also records the turn. How a tool is used and how a sub-agent is run is up to the caller's ``Hands``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NoReturn, Protocol, TypeVar

from model.boundary.at_once import all_of
from model.codec.chat import ToolCall
from model.codec.tools import created
from model.rl.failures import ASKED, LOST
from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import Recorder, Recording

Prompt = TypeVar("Prompt")


class BudgetSpent(Exception):
    """There is no critical step left, not even for the answer."""


@dataclass(frozen=True)
class Finished:
    """How an assignment ended.

    Attributes:
        steps: completions that the sub-agent took.
        outcome: "answer", or why there is none, as ``model.rl.environment.Episode.finish_reason``.
        answer: its final message; "" if there is none.
        failure: one line that says what broke; "" if nothing did.
        tokens: of its conversation.
    """

    steps: int
    outcome: str
    answer: str = ""
    failure: str = ""
    tokens: int = 0

    @property
    def told(self) -> str:
        """What the orchestrator is told."""
        return self.answer if self.outcome == "answer" else f"error: no answer ({self.outcome})"


@dataclass(frozen=True)
class Assignment(Generic[Prompt]):
    """A task of a group: the call that assigns it, what its sub-agent is asked, and its place in the trace."""

    call: ToolCall
    prompt: Prompt
    at: Recording


class Hands(Protocol[Prompt]):
    """How an orchestrator's calls are carried out."""

    def refusal(self, call: ToolCall) -> str | None:
        """What a call returns that cannot run; None if it can."""

    async def use(self, call: ToolCall) -> str:
        """Use a tool and return what it says."""

    def prepare(self, call: ToolCall, system_prompt: str) -> Prompt | None:
        """What a sub-agent with this system prompt is asked; None if that is longer than a context."""

    async def work(self, assignment: Assignment[Prompt], number: int, allowed: int) -> Finished:
        """Run assignment ``number`` of a group, with at most ``allowed`` completions, and record them."""


@dataclass
class Swarm:
    """What has happened in one episode so far.

    Attributes:
        steps: the budget, and what is spent of it.
        sub_agent_steps: completions that a sub-agent may take.
        recorder, main: write the trace; ``main`` is where the orchestrator stands.
        agents: name -> system prompt.
        parallelism: the largest number of assignments at once.
        assigned, finished, lost: how many assignments there were, how many of them were answered, and of how many the
            sub-agent broke.
        failure: one line on the first sub-agent that broke; "" if none did.
        responded: turns of the orchestrator that were carried out.
        largest_sub, sub_tokens: tokens of the longest conversation of a sub-agent, and of all of them.
    """

    steps: CriticalSteps
    sub_agent_steps: int
    recorder: Recorder
    main: Recording
    agents: dict[str, str] = field(default_factory=dict)
    parallelism: int = 0
    assigned: int = 0
    finished: int = 0
    lost: int = 0
    failure: str = ""
    responded: int = 0
    largest_sub: int = 0
    sub_tokens: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """The metrics of the episode."""
        return {
            "critical_steps": float(self.steps.spent),
            "parallelism": float(self.parallelism),
            ASKED: float(self.assigned),
            "subtasks_finished": float(self.finished),
            LOST: float(self.lost),
        }

    def misspoke(self) -> None:
        """Count a turn that could not be read. Raises BudgetSpent."""
        self.steps.spend(1)
        self._next()

    def ended(self, turns: int) -> None:
        """Count the last of the orchestrator's ``turns``, if nobody responded to it."""
        if turns > self.responded:
            self.steps.spend(min(1, self.steps.remaining))

    async def respond(self, calls: Sequence[ToolCall], hands: Hands[Prompt]) -> list[str]:
        """Carry out a turn and count its steps.

        Returns:
            What each call returns, in the order of the calls.

        Raises:
            BudgetSpent: the turn does not fit into the budget, or leaves no step for an answer.
        """
        results: dict[int, str] = {}
        group: dict[int, Assignment[Prompt]] = {}
        direct = 0
        for number, call in enumerate(calls):
            begun = self.recorder.now()
            if error := hands.refusal(call) or self._no_agent(call):
                results[number] = error
            elif call.name == "create_subagent":
                self.agents[call.arguments["name"]] = call.arguments["system_prompt"]
                results[number] = created(call.arguments["name"])
            elif call.name == "assign_task":
                prepared = self._assignment(call, hands)
                if isinstance(prepared, Assignment):
                    group[number] = prepared
                    continue
                results[number] = prepared
            else:
                direct += 1
                if direct > self.steps.remaining:
                    self._end(group.values())
                results[number] = await hands.use(call)
                self.main.tool_call(begun, call, results[number], later=direct - 1)
                continue
            self.main.tool_call(begun, call, results[number])
        results |= await self._together(group, max(1, direct), hands)
        self._next()
        return [results[number] for number in range(len(calls))]

    async def _together(self, group: dict[int, Assignment[Prompt]], main: int, hands: Hands[Prompt]) -> dict[int, str]:
        """Run a group, and count its steps and the ``main`` ones of the orchestrator.

        Returns:
            What each call of the group returns.
        """
        allowed = min(self.sub_agent_steps, self.steps.remaining - main)
        if group and allowed < 1:
            self._end(group.values())
        done = await all_of(self._one(each, n, main, allowed, hands) for n, each in enumerate(group.values()))
        self.steps.spend(main, [one.steps for one in done])
        self.parallelism = max(self.parallelism, len(done))
        self.assigned += len(done)
        self.finished += sum(one.outcome == "answer" for one in done)
        self.lost += sum(bool(one.failure) for one in done)
        self.largest_sub = max([self.largest_sub, *(one.tokens for one in done)])
        self.sub_tokens += sum(one.tokens for one in done)
        self.failure = self.failure or next((one.failure for one in done if one.failure), "")
        return {number: one.told for number, one in zip(group, done, strict=True)}

    async def _one(
        self, assignment: Assignment[Prompt], number: int, main: int, allowed: int, hands: Hands[Prompt]
    ) -> Finished:
        begun = self.recorder.now()
        assignment.at.critical_step = self.main.critical_step + main
        done = await hands.work(assignment, number, allowed)
        assignment.at.agent.ended(done.outcome, done.failure, done.steps)
        self.main.tool_call(begun, assignment.call, done.told, later=main - 1)
        return done

    def _assignment(self, call: ToolCall, hands: Hands[Prompt]) -> Assignment[Prompt] | str:
        """The task of a call, which has an agent of its own in the trace; or why there is none."""
        system_prompt, task = self.agents[call.arguments["agent"]], call.arguments["prompt"]
        agent = self.recorder.agent(
            call.arguments["agent"], parent=self.main.agent, main_step=self.main.main_step,
            system_prompt=system_prompt, task=task,
        )  # fmt: skip
        prompt = hands.prepare(call, system_prompt)
        if prompt is None:
            agent.ended("context")
            return "error: the task is too long"
        return Assignment(call, prompt, Recording(agent, self.main.main_step))

    def _next(self) -> None:
        self.responded += 1
        if self.steps.remaining < 1:  # there is no step left for the answer
            self._end()
        self.main.main_step, self.main.critical_step = self.main.main_step + 1, self.steps.spent + 1

    def _end(self, unstarted: Iterable[Assignment[Prompt]] = ()) -> NoReturn:
        for each in unstarted:
            each.at.agent.ended("budget")
        self.steps.spend(self.steps.remaining)
        raise BudgetSpent

    def _no_agent(self, call: ToolCall) -> str | None:
        if call.name == "assign_task" and call.arguments["agent"] not in self.agents:
            return f"error: no agent {call.arguments['agent']}"
        return None
