"""A small server in the place of a remote model: it speaks OpenAI's chat completions, and a script says what."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_server import Handler, serving

MODEL = "kimi"


def say(content: str, **more: Any) -> dict[str, Any]:
    """A final message; ``more`` are other fields of it."""
    return {"role": "assistant", "content": content, **more}


def use(*calls: tuple[str, Any], first: int = 0, **more: Any) -> dict[str, Any]:
    """A message with tool calls; arguments that are text are sent as they are."""
    told = [
        {
            "id": f"functions.{name}:{number}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for number, (name, given) in enumerate(calls, first)
    ]
    return {"role": "assistant", "content": None, "tool_calls": told, **more}


@dataclass
class Script:
    """What the server does.

    Attributes:
        answer: a request's body -> a message; or a tuple of status, body and headers.
        seconds: that each completion takes.
        usage: whether tokens are counted: 100 read and 10 written in each completion.
        requests: bodies so far. keys: their bearer tokens. organizations: whom they say they are of.
        most: the most completions at once.
    """

    answer: Callable[[dict[str, Any]], Any]
    seconds: float = 0.0
    usage: bool = True
    models: Any = field(default_factory=lambda: {"data": [{"id": MODEL}]})
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    organizations: list[str] = field(default_factory=list)
    most: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _ChatHandler(Handler):
    script: Script

    def do_GET(self) -> None:
        self.script.keys.append(self.headers.get("Authorization", ""))
        if self.path == "/v1/models" and not isinstance(self.script.models, int):
            self.reply(200, self.script.models)
        else:
            self.reply(self.script.models if isinstance(self.script.models, int) else 404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        script, body = self.script, json.loads(self.body())
        script.keys.append(self.headers.get("Authorization", ""))
        script.organizations += self.headers.get_all("OpenAI-Organization", [])
        with script.lock:
            script.requests.append(body)
            script.running += 1
            script.most = max(script.most, script.running)
        time.sleep(script.seconds)
        told = script.answer(body)
        with script.lock:
            script.running -= 1
        if isinstance(told, tuple):
            self.reply(*told)
            return
        reason = "tool_calls" if told.get("tool_calls") else "stop"
        choice = {"index": 0, "message": told, "finish_reason": told.pop("finish_reason", reason)}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110} if script.usage else None
        self.reply(200, {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})


@contextmanager
def chatting(script: Script) -> Iterator[str]:
    """The URL of a server that follows ``script``."""
    with serving(_ChatHandler, script=script) as url:
        yield url


def is_sub_agent(body: dict[str, Any]) -> bool:
    """Whether a request comes from an agent that cannot create others."""
    return "create_subagent" not in {tool["function"]["name"] for tool in body.get("tools", ())}


def results(body: dict[str, Any]) -> list[str]:
    """What the conversation's tools have returned."""
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


def task_of(body: dict[str, Any]) -> str:
    """What the agent was told."""
    return str(body["messages"][1]["content"])


def turns(*messages: Any) -> Callable[[dict[str, Any]], Any]:
    """The orchestrator's turns, one after the other; sub-agents answer with their task in capitals."""
    left = list(messages)

    def answer(body: dict[str, Any]) -> Any:
        return say(task_of(body).upper()) if is_sub_agent(body) else left.pop(0)

    return answer
