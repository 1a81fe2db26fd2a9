"""A remote model that knows the reference trajectories: it says the turn that comes next in the sample it was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from model.data.samples.sample import Sample


def next_turn(body: dict[str, Any], samples: Sequence[Sample]) -> tuple[dict[str, Any], str]:
    """The assistant's message and the finish reason, for a request of chat completions; call ids are the server's."""
    said = sum(message["role"] == "assistant" for message in body["messages"])
    (sample,) = [sample for sample in samples if asked(sample.messages) == asked(body["messages"])]
    turn = [message for message in sample.messages if message["role"] == "assistant"][said]
    if calls := turn.get("tool_calls"):
        made = [
            {
                "id": f"call_{said}_{number}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
            }
            for number, call in enumerate(calls)
        ]
        return {"content": turn.get("content") or None, "tool_calls": made}, "tool_calls"
    return {"content": turn["content"]}, "stop"


def asked(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the first user turn."""
    content = next(message["content"] for message in messages if message["role"] == "user")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")
