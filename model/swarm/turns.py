"""What a turn of an orchestrator does, and what it costs, whether it is made of token ids or of chat messages (source:
K2.5 paper, PARL and App. E.8).

``Swarm`` decides: which calls are refused, which sub-agents exist, how many steps are left and how they are counted.
How a tool is used and how sub-agents are run is up to the caller's ``Hands``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, TypeVar

from model.codec.chat import ToolCall
from model.codec.tools import created
from model.swarm.critical_steps import CriticalSteps

Assignment = TypeVar("Assignment")


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
    """

    steps: int
    outcome: str
    answer: str = ""
    failure: str = ""


class Hands(Protocol[Assignment]):
    """How an orchestrator's calls are carried out."""

    def refusal(self, call: ToolCall) -> str | None:
        """What a call returns that cannot run; None if it can."""

    async def use(self, call: ToolCall, step: int) -> str:
        """Use a tool in critical step ``step`` and return what it says."""

    def prepare(self, call: ToolCall, system_prompt: str) -> Assignment | None:
        """An assignment to a sub-agent with this system prompt; None if it is longer than a context."""

    async def work(self, assignments: Sequence[Assignment], allowed: int, step: int) -> list[Finished]:
        """Run assignments at the same time from critical step ``step`` on, each of at most ``allowed`` completions."""


@dataclass
class Swarm:
    """What has happened in one episode so far.

    Attributes:
        sub_agent_steps: completions that a sub-agent may take.
        turn: number, from 1, of the orchestrator's turn that goes on.
        agents: name -> system prompt.
        parallelism: the largest number of assignments at once.
        assigned, finished: how many assignments there were, and how many of them were answered.
        failure: one line on the first sub-agent that broke; "" if none did.
    """

    steps: CriticalSteps
    sub_agent_steps: int
    turn: int = 1
    agents: dict[str, str] = field(default_factory=dict)
    parallelism: int = 0
    assigned: int = 0
    finished: int = 0
    failure: str = ""

    def misspoke(self) -> None:
        """Count a turn that could not be read. Raises BudgetSpent."""
        self.steps.spend(1)
        self._next()

    async def respond(self, calls: Sequence[ToolCall], hands: Hands[Assignment]) -> list[str]:
        """Carry out a turn and count its steps.

        Returns:
            What each call returns, in the order of the calls.

        Raises:
            BudgetSpent: the turn does not fit into the budget, or leaves no step for an answer.
        """
        results: dict[int, str] = {}
        assignments: dict[int, Assignment] = {}
        direct = 0
        for number, call in enumerate(calls):
            if error := hands.refusal(call) or self._no_agent(call):
                results[number] = error
            elif call.name == "create_subagent":
                self.agents[call.arguments["name"]] = call.arguments["system_prompt"]
                results[number] = created(call.arguments["name"])
            elif call.name == "assign_task":
                assignment = hands.prepare(call, self.agents[call.arguments["agent"]])
                if assignment is None:
                    results[number] = "error: the task is too long"
                else:
                    assignments[number] = assignment
            else:
                direct += 1
                if direct > self.steps.remaining:
                    self._end()
                results[number] = await hands.use(call, self.steps.spent + direct)
        main = max(1, direct)
        if assignments:
            results |= await self._assigned(assignments, main, hands)
        else:
            self.steps.spend(main)
        self._next()
        return [results[number] for number in range(len(calls))]

    async def _assigned(
        self, assignments: dict[int, Assignment], main: int, hands: Hands[Assignment]
    ) -> dict[int, str]:
        """Run assignments and count them, with ``main`` steps of the orchestrator; what each of them returns."""
        allowed = min(self.sub_agent_steps, self.steps.remaining - main)
        if allowed < 1:
            self._end()
        done = await hands.work(list(assignments.values()), allowed, self.steps.spent + main + 1)
        self.steps.spend(main, [one.steps for one in done])
        self.parallelism = max(self.parallelism, len(done))
        self.assigned += len(done)
        self.finished += sum(one.outcome == "answer" for one in done)
        self.failure = self.failure or next((one.failure for one in done if one.failure), "")
        return {number: _told(one) for number, one in zip(assignments, done, strict=True)}

    def answered(self) -> None:
        """Count the last turn, to which nobody responds."""
        self.steps.spend(min(1, self.steps.remaining))

    def _next(self) -> None:
        if self.steps.remaining < 1:  # there is no step left for the answer
            self._end()
        self.turn += 1

    def _end(self) -> NoReturn:
        self.steps.spend(self.steps.remaining)
        raise BudgetSpent

    def _no_agent(self, call: ToolCall) -> str | None:
        if call.name == "assign_task" and call.arguments["agent"] not in self.agents:
            return f"error: no agent {call.arguments['agent']}"
        return None


def _told(one: Finished) -> str:
    """What an assignment returns."""
    return one.answer if one.outcome == "answer" else f"error: no answer ({one.outcome})"
