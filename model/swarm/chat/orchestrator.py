"""An orchestrator and its sub-agents over a chat endpoint (source: K2.5 paper, Agent Swarm and App. E.8).

The same swarm as in training (``model.swarm.orchestrator``), on messages instead of token ids: one served model speaks
for all agents, each with a conversation of its own; only the final message of a sub-agent comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.boundary.errors import MoonflowError, Unavailable
from model.boundary.untrusted_text import shown
from model.codec.chat import ToolCall
from model.swarm.chat.board import AgentState, Board
from model.swarm.chat.endpoint import ChatEndpoint, Reply, tokens_of
from model.swarm.chat.tools import Toolbox
from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import Recorder, Recording, Trace
from model.swarm.turns import Assignment, BudgetSpent, Finished, Swarm

# It says who the model is and what it has, and not how to divide the work (source: App. E.8; wording: ours).
SYSTEM_PROMPT = (
    "You are an orchestrator. Answer the user's question. You have tools, and you can create sub-agents with "
    "create_subagent and give them tasks with assign_task. A sub-agent has the same tools as you, but sees only its "
    "system prompt and its task. You get only its last message. Tasks that you assign in one turn are worked on at the "
    "same time. When you know the answer, write it without calling a tool."
)
# Of a context, for one turn: servers refuse a request that could exceed it, and only they count exactly (ours).
TURN_SHARE = 4
Respond = Callable[[Reply], Awaitable[list[str]]]


@dataclass(frozen=True)
class ChatLimits:
    """Limits of one question.

    Attributes:
        critical_steps: the budget (default: that of the paper's in-house benchmark).
        sub_agent_steps: completions of one sub-agent (default: as above).
        max_tokens: tokens of one conversation, prompt and answers (default: ours).
        parallel: most sub-agents at work at once; more of them wait (default: ours).
    """

    critical_steps: int = 100
    sub_agent_steps: int = 50
    max_tokens: int = 131_072
    parallel: int = 16


@dataclass(frozen=True)
class _Task:
    """What a sub-agent is asked, and its line on the board."""

    messages: list[dict[str, Any]]
    agent: AgentState


class ChatSwarm:
    """One question to a swarm; also the ``Hands`` of its turns.

    ``board`` shows what goes on, and ``trace`` what has happened so far, also after an error or a cancellation.
    """

    def __init__(
        self, endpoint: ChatEndpoint, toolbox: Toolbox, limits: ChatLimits, prices: tuple[float, float] | None = None
    ) -> None:
        self._endpoint, self._toolbox, self._limits = endpoint, toolbox, limits
        self._free = asyncio.Semaphore(limits.parallel)
        self._malformed: dict[str, str] = {}
        recorder, steps = Recorder(), CriticalSteps(limits.critical_steps)
        self.board = Board(steps, recorder, prices)
        self._question, self._done = "", Finished(0, "stopped")
        self._system = SYSTEM_PROMPT
        self._swarm: Swarm | None = None

    async def ask(self, question: str) -> Finished:
        """Answer a question; an outcome other than "answer" says why there is none.

        Raises:
            MoonflowError: the endpoint cannot be reached, has no such model or takes no tools, or fails in a turn of
                the orchestrator.
        """
        recorder = self.board.recorder
        self._question = question
        main = Recording(recorder.agent("orchestrator", system_prompt=self._system, task=question))
        swarm = Swarm(self.board.steps, self._limits.sub_agent_steps, recorder, main)
        self._swarm = swarm
        agent = self.board.add("orchestrator", question)
        self.board.begin(agent)
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": question}]
        outcome = "failed"
        try:
            self._done = await self._converse(
                agent, main, messages, self._toolbox.declarations(True), self._respond, self._limits.critical_steps + 1
            )
            outcome = self._done.outcome
            swarm.ended(self._done.steps)
        except asyncio.CancelledError:
            outcome = "stopped"
            raise
        except MoonflowError as error:
            self._done = Finished(agent.steps, "failed", failure=str(error))
            raise
        finally:
            main.agent.ended(outcome, self._done.failure)
            self.board.end(agent, outcome)
        return self._done

    @property
    def figures(self) -> dict[str, float]:
        """Critical steps, parallelism and assignments, as the metrics of an episode in training."""
        return self._swarm.figures if self._swarm else {}

    @property
    def trace(self) -> Trace:
        """What has happened so far; call it after `ask` began."""
        failure = self._done.failure or (self._swarm.failure if self._swarm else "")
        return self.board.recorder.trace(
            about={"endpoint": self._endpoint.url, "model": self._endpoint.model}, question=self._question,
            answer=self._done.answer, outcome=self._done.outcome, failure=failure,
            critical_steps=self.board.steps.spent, budget=self._limits.critical_steps,
        )  # fmt: skip

    async def _converse(
        self,
        agent: AgentState,
        at: Recording,
        messages: list[dict[str, Any]],
        tools: Sequence[Any],
        respond: Respond,
        max_turns: int,
    ) -> Finished:
        """Alternate turns and results until the agent answers."""
        size = tokens_of([messages, tools])
        for turn in range(1, max_turns + 1):
            room = self._limits.max_tokens - size
            if room < 1:
                return Finished(agent.steps, "context")
            most = max(1, self._limits.max_tokens // TURN_SHARE)
            reply = await self._turn(agent, at, messages, tools, min(room, most))
            if reply.finish_reason == "length":
                return Finished(agent.steps, "length" if room > most else "context")
            if not reply.calls:
                said = reply.content.strip()
                return Finished(agent.steps, "answer" if said else "empty", said)
            if turn == max_turns:
                break
            try:
                results = await respond(reply)
            except BudgetSpent:
                return Finished(agent.steps, "budget")
            heard = [
                {"role": "tool", "tool_call_id": call.id, "content": result}
                for call, result in zip(reply.calls, results, strict=True)
            ]
            messages += [reply.message, *heard]
            size = reply.prompt_tokens + reply.new_tokens + tokens_of(heard)
        return Finished(agent.steps, "turns")

    async def _turn(
        self, agent: AgentState, at: Recording, messages: list[dict[str, Any]], tools: Sequence[Any], room: int
    ) -> Reply:
        began, agent.doing = at.agent.now(), "thinks"
        agent.steps += 1  # one that breaks is a step too
        reply = await self._endpoint.complete(messages, tools, room)
        agent.doing = ""
        agent.prompt_tokens += reply.prompt_tokens
        agent.new_tokens += reply.new_tokens
        self.board.counted &= reply.counted
        said = f"{reply.thinking}\n\n{reply.content}".strip() if reply.thinking else reply.content
        at.completion(began, said, reply.prompt_tokens, reply.new_tokens)
        return reply

    async def _respond(self, reply: Reply) -> list[str]:
        """The orchestrator's turn."""
        assert self._swarm is not None
        self._malformed = reply.malformed
        names = dict.fromkeys(shown(call.name, 30) for call in reply.calls)
        self.board.agents[0].doing = ", ".join(names)
        return await self._swarm.respond(reply.calls, self)

    def refusal(self, call: ToolCall) -> str | None:
        return self._malformed.get(call.id) or self._toolbox.refusal(call, swarm=True)

    async def use(self, call: ToolCall) -> str:
        return await self._toolbox.use(call)

    def prepare(self, call: ToolCall, system_prompt: str) -> _Task | None:
        messages = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": call.arguments["prompt"]},
        ]
        if tokens_of([messages, self._toolbox.declarations(False)]) >= self._limits.max_tokens:
            return None
        return _Task(messages, self.board.add(call.arguments["agent"], call.arguments["prompt"]))

    async def work(self, assignment: Assignment[_Task], number: int, allowed: int) -> Finished:
        agent, at = assignment.prompt.agent, assignment.at
        outcome = "stopped"
        try:
            async with self._free:
                self.board.begin(agent)
                done = await self._sub_agent(assignment, allowed)
            outcome = done.outcome
            return done
        finally:
            if outcome == "stopped":
                at.agent.ended(outcome)
            self.board.end(agent, outcome)

    async def _sub_agent(self, assignment: Assignment[_Task], allowed: int) -> Finished:
        """Run one assignment; what breaks in it alone is how it ended. Raises Unavailable."""
        task, at = assignment.prompt, assignment.at

        async def respond(reply: Reply) -> list[str]:
            results = []
            for call in reply.calls:
                began, task.agent.doing = at.agent.now(), shown(call.name, 30)
                refused = reply.malformed.get(call.id) or self._toolbox.refusal(call, swarm=False)
                results.append(refused or await self._toolbox.use(call))
                at.tool_call(began, call, results[-1])
            at.critical_step += 1
            return results

        try:
            tools = self._toolbox.declarations(False)
            return await self._converse(task.agent, at, task.messages, tools, respond, allowed)
        except Unavailable:
            raise
        except MoonflowError as error:
            told = str(error)
        except Exception as error:  # a reply that nobody foresaw
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Finished(task.agent.steps, "failed", failure=f"sub-agent {shown(task.agent.name, 60)}: {told}")
