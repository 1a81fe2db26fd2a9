"""The tools of a chat: what may go wrong in one is bounded, named, and told to the model (source: ours).

A tool belongs to somebody else. It may raise, hang, or return megabytes; its caller gets one text in any case.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown, well_formed
from model.codec.chat import ToolCall
from model.codec.tools import SWARM_TOOLS, TOOLS, no_tool

TIMEOUT_S = 60.0  # of one call (ours)
MAX_RESULT = 32_768  # characters of a result that are kept (ours)
MAX_NAME = 64  # characters (source: OpenAI's API reference)


class ToolError(Exception):
    """A call failed in a way that its tool describes in one line."""


@dataclass(frozen=True)
class Tool:
    """A tool that a model may call.

    Attributes:
        parameters: JSON Schema of its arguments, an object.
        run: arguments -> result. Raises ToolError, or whatever it likes.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[dict[str, Any]], Awaitable[str]]

    @property
    def declaration(self) -> dict[str, Any]:
        """As OpenAI's API takes it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class Toolbox:
    """The tools of all agents of a swarm.

    Attributes:
        failures: tool -> how many of its calls failed.
    """

    def __init__(self, tools: Iterable[Tool] = (), timeout_s: float = TIMEOUT_S) -> None:
        self._tools: dict[str, Tool] = {}
        self._timeout_s = timeout_s
        self.failures: Counter[str] = Counter()
        for tool in tools:
            self.add(tool)

    def __len__(self) -> int:
        return len(self._tools)

    def add(self, tool: Tool) -> None:
        """Add a tool, under its name or, if that is taken, the name and a number."""
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:MAX_NAME] or "tool"
        name, number = plain, 1
        while name in self._tools or name in SWARM_TOOLS:
            number += 1
            name = f"{plain[: MAX_NAME - len(str(number)) - 1]}_{number}"
        self._tools[name] = replace(tool, name=name)

    def declarations(self, swarm: bool) -> list[dict[str, Any]]:
        """What an agent may call; an orchestrator also what makes a swarm."""
        own = [tool.declaration for tool in self._tools.values()]
        return [*own, *(TOOLS[name].declaration for name in SWARM_TOOLS)] if swarm else own

    def refusal(self, call: ToolCall, swarm: bool) -> str | None:
        """What a call returns whose tool the agent does not have, or whose arguments make no swarm; else None."""
        if swarm and call.name in SWARM_TOOLS:
            return TOOLS[call.name].refusal(call.arguments)
        return None if call.name in self._tools else no_tool(shown(call.name, MAX_NAME))

    async def use(self, call: ToolCall) -> str:
        """What a call returns, or a line that starts with ``error:``; it raises only if this task is cancelled."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return _bounded(await self._tools[call.name].run(call.arguments))
        except ToolError as error:
            told = str(error)
        except TimeoutError:
            told = f"it gave no answer in {self._timeout_s:g} s"
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            told = "it was cancelled"
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is not an Exception
            told = f"it raised {type(error).__name__}: {_message(error)}"
        self.failures[call.name] += 1
        return _bounded(f"error: {call.name}: {told}")


def _message(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:300]
    except Exception:
        return "(its message cannot be shown)"


def _bounded(text: str) -> str:
    """A result as well-formed text of at most about MAX_RESULT characters."""
    if len(text) > MAX_RESULT:
        text = f"{text[:MAX_RESULT]}\n[cut: the tool returned {len(text):,} characters]"
    return well_formed(text)


def as_arguments(value: Any) -> dict[str, Any]:
    """The arguments of a call that a model wrote.

    Raises:
        ToolError: they are no JSON object.
    """
    if not isinstance(value, dict):
        raise ToolError("arguments must be a JSON object")
    return value


def unique(specs: Sequence[str], option: str) -> None:
    """Raises MoonflowError if an option's value is given twice."""
    twice = [spec for spec, count in Counter(specs).items() if count > 1]
    if twice:
        raise MoonflowError(f"{option} {shown(twice[0])} is given twice: leave one out")
