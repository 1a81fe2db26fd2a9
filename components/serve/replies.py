"""What a caller gets: the ``chat.completion`` object and its stream of chunks (source: the API reference)."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from components.serve.engine_process import Token
from components.serve.turn_reader import Delta
from model.boundary import strict_json
from model.codec.chat import ToolCall
from model.codec.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
NO_LOGPROB = -9999.0  # if there is no number to report (source: the API reference)


class Reply:
    """One answer's identity, from which its objects are made.

    A whole answer says which weights it is from, ``metadata.weight_version`` as SGLang calls it; a stream does not.
    """

    def __init__(self, model: str, weight_version: str) -> None:
        self._metadata = {"weight_version": weight_version}
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        # A stream has an event for every token; the part that all share is written once.
        self._chunk_head = strict_json.write(self._head | {"object": "chat.completion.chunk"})[:-1]

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> bytes:
        body = {"object": "chat.completion", "choices": choices, "usage": usage, "metadata": self._metadata}
        return strict_json.write(self._head | body).encode()

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        """A server-sent event; ``usage`` on the last one only."""
        last = f', "usage": {strict_json.write(usage)}' if usage is not None else ""
        return f'data: {self._chunk_head}, "choices": {strict_json.write(choices)}{last}}}\n\n'.encode()


def event(body: dict[str, Any]) -> bytes:
    return f"data: {strict_json.write(body)}\n\n".encode()


def choice(index: int, deltas: Sequence[Delta], reason: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """One of a whole answer's choices."""
    calls = [delta.call for delta in deltas if delta.call is not None]
    content = "".join(delta.content for delta in deltas)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    reasoning = "".join(delta.reasoning for delta in deltas)
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": _logprobs(logprobs)}


def chunk_choice(
    index: int, delta: dict[str, Any], reason: str | None = None, logprobs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """One of a chunk's choices."""
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": _logprobs(logprobs)}


def merged(deltas: Iterable[Delta], calls: int) -> list[dict[str, Any]]:
    """Deltas in the API's form, neighbours of a kind in one; ``calls``: tool calls already sent for this choice."""
    bodies: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.call is not None:
            bodies.append({"tool_calls": [{"index": calls, **_call(delta.call)}]})
            calls += 1
            continue
        key, text = ("reasoning_content", delta.reasoning) if delta.reasoning else ("content", delta.content)
        if bodies and key in bodies[-1]:
            bodies[-1][key] += text
        else:
            bodies.append({key: text})
    return bodies


def finish_reason(ended_by: str, calls: int) -> str:
    """``ended_by`` is the engine's reason; a cut-off turn is told as such even if it holds whole calls."""
    return "length" if ended_by == "length" else "tool_calls" if calls else "stop"


def usage(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def logprob_entries(tokens: Iterable[Token], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """One for every sampled token, those of reasoning, tool calls and the closing one included."""
    return [
        {
            "token": (raw := tokenizer.token_bytes(token.id)).decode(errors="replace"),
            "logprob": token.logprob if math.isfinite(token.logprob) else NO_LOGPROB,
            "bytes": list(raw),
            "top_logprobs": [],
        }
        for token in tokens
    ]


def _logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = strict_json.write(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
