"""``moonflow swarm ask``: ask a swarm, show it at work, and keep the trace whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import cut, shown
from model.swarm.chat.endpoint import ChatEndpoint
from model.swarm.chat.functions import function_tool
from model.swarm.chat.orchestrator import ChatLimits, ChatSwarm
from model.swarm.chat.tools import Toolbox, unique
from model.swarm.turns import Finished
from pipelines.commands.options import Stopped
from pipelines.swarm_session import kept_file, key_of, prices_of, save_trace, until_signal
from pipelines.swarm_view import summary, watched

WHY = {
    "budget": "the budget of critical steps is spent: raise --critical-steps",
    "context": "the orchestrator's context is full: raise --max-tokens, or ask for less",
    "length": "the orchestrator's last turn was cut: raise --max-tokens",
    "turns": "the orchestrator has used all its turns: raise --critical-steps",
    "empty": "the orchestrator's last turn was empty: ask again, or use another model",
}

WHEN_LATE = "give a slow model longer with --request-timeout, or ask it less at once with --parallel"


@dataclass(frozen=True)
class Question:
    """What is asked, of whom, with which tools and limits; see `pipelines.commands.swarm.ask`."""

    text: str
    endpoint: str
    model: str
    api_key_env: str
    tools: tuple[str, ...]
    mcp: tuple[str, ...]
    limits: ChatLimits
    request_timeout: float
    tool_timeout: float
    price_in: float | None
    price_out: float | None


def ask_swarm(asked: Question, trace: Path | None, *, as_json: bool) -> bool:
    """Ask, print the answer and write the trace; whether there is an answer.

    Raises:
        MoonflowError: the endpoint or a tool cannot be used; the trace is written if the question was asked.
        Stopped: a signal ended it.
    """
    prices, key = prices_of(asked.price_in, asked.price_out), key_of(asked.api_key_env, asked.endpoint)
    if not asked.text.strip():
        raise MoonflowError("the question is empty: ask something")
    endpoint = ChatEndpoint(asked.endpoint, asked.model, key, asked.request_timeout, when_late=WHEN_LATE)
    unique(asked.tools, "--tool")
    unique(asked.mcp, "--mcp")
    toolbox = Toolbox([function_tool(spec) for spec in asked.tools], asked.tool_timeout)
    target = kept_file(trace, ".json", "--trace")
    console = Console(highlight=False)
    run = _Run(asked, endpoint, toolbox, prices, console)
    done = None
    try:
        done = asyncio.run(run.to_its_end())
    finally:
        saved = run.save(target, key)
        if saved and done is None and not run.stopped:
            print(f"moonflow: the trace so far is {saved}", file=sys.stderr)
    if run.stopped:
        _finish(run, None, saved, console, as_json)
        print("moonflow: stopped" + (f"; the trace so far is {saved}" if saved else ""), file=sys.stderr)
        raise Stopped(128 + run.stopped)
    _finish(run, done, saved, console, as_json)
    assert done is not None
    if done.outcome != "answer":
        print(f"moonflow: no answer: {WHY.get(done.outcome, shown(done.outcome))}", file=sys.stderr)
    return done.outcome == "answer"


class _Run:
    """One question. ``stopped``: the signal that ended it, 0 for none."""

    def __init__(
        self,
        asked: Question,
        endpoint: ChatEndpoint,
        toolbox: Toolbox,
        prices: tuple[float, float] | None,
        console: Console,
    ) -> None:
        self.asked, self.endpoint, self.toolbox, self.prices, self.console = asked, endpoint, toolbox, prices, console
        self.swarm: ChatSwarm | None = None
        self.stopped = 0

    async def to_its_end(self) -> Finished | None:
        """The result; None if a signal came."""
        done, self.stopped = await until_signal(self._work())
        return done

    async def _work(self) -> Finished:
        async with self.endpoint, _servers(self.asked, self.toolbox):
            context = await self.endpoint.context()
            limits = self.asked.limits
            if context is not None:
                limits = replace(limits, max_tokens=min(limits.max_tokens, context))
            self.swarm = ChatSwarm(self.endpoint, self.toolbox, limits, self.prices)
            async with watched(self.swarm.board, self.console):
                return await self.swarm.ask(self.asked.text)

    def save(self, target: Path, key: str) -> Path | None:
        """Write the trace, in which the key is nowhere; None if nothing was asked."""
        if self.swarm is None or not self.swarm.board.agents:
            return None
        return save_trace(self.swarm.trace, target, key)


@contextlib.asynccontextmanager
async def _servers(asked: Question, toolbox: Toolbox) -> AsyncIterator[None]:
    """The MCP servers; their tools are in the toolbox."""
    async with contextlib.AsyncExitStack() as stack:
        if asked.mcp:
            from model.swarm.chat.mcp_servers import mcp_tools  # imports a web server

            environment = {name: value for name, value in os.environ.items() if name != asked.api_key_env}
            for spec in asked.mcp:
                for tool in await stack.enter_async_context(mcp_tools(spec, environment)):
                    toolbox.add(tool)
        yield


def _finish(run: _Run, done: Finished | None, saved: Path | None, console: Console, as_json: bool) -> None:
    """Print the answer and what it took."""
    if run.swarm is not None and run.swarm.board.agents:
        if done is not None and done.answer:
            print(f"\n{cut(done.answer, len(done.answer))}\n")
        print(summary(run.swarm.board, run.toolbox.failures))
        if saved:
            print(f"trace: {saved}; moonflow swarm show {saved} renders it")
    if as_json:
        print(json.dumps(_result(run, done, saved)), flush=True)


def _result(run: _Run, done: Finished | None, saved: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "outcome": done.outcome if done else "stopped",
        "answer": done.answer if done else "",
        "trace": str(saved) if saved else None,
    }
    if run.swarm is not None:
        board = run.swarm.board
        found |= {name: int(value) for name, value in run.swarm.figures.items()}
        found |= {
            "budget": board.steps.budget,
            "agents": len(board.agents),
            "prompt_tokens": board.prompt_tokens,
            "new_tokens": board.new_tokens,
            "tokens_counted": board.counted,
            "cost": board.cost,
            "seconds": round(board.recorder.now(), 3),
            "failed_tool_calls": dict(run.toolbox.failures),
        }
    return found
