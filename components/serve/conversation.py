"""A caller's messages -> our turns and their media (source: the API reference of chat completions)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.serve.errors import bad_request
from components.serve.limits import MAX_CALLS, MAX_JSON_VALUES, MAX_PARTS
from components.serve.media import KINDS, Media
from model.boundary import strict_json
from model.codec.chat import call_id
from model.codec.image import ImageConfig


@dataclass(frozen=True)
class Conversation:
    """``turns`` as ``model.codec.chat`` renders them, ``media`` by the names in them, ``calls`` made in all of them."""

    turns: list[dict[str, Any]]
    media: Media
    calls: int


def read_conversation(messages: Sequence[dict[str, Any]], image_config: ImageConfig) -> Conversation:
    """Check and translate the messages.

    The caller chooses tool call ids, but the chat template numbers the calls: ids are replaced by its own.

    Raises:
        ApiError: which message is wrong, and how.
    """
    turns: list[dict[str, Any]] = []
    media = Media(image_config)
    parts = calls = values = 0
    pending: dict[str, list[str]] = {}
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        role, content = message.get("role"), message.get("content")
        parts += len(content) if isinstance(content, list) else 1
        if parts > MAX_PARTS:
            raise bad_request(f"the messages have more than {MAX_PARTS} content parts", f"{where}.content")
        turn: dict[str, Any] = {"content": _content(content, role, media, f"{where}.content")}
        if role in ("system", "developer"):
            turn["role"] = "system"
        elif role == "user":
            turn["role"] = "user"
        elif role == "assistant":
            turn["role"] = "assistant"
            theirs = message.get("tool_calls") or []
            if not isinstance(theirs, list):
                raise bad_request("tool_calls must be a list", f"{where}.tool_calls")
            if calls + len(theirs) > MAX_CALLS:
                raise bad_request(f"the messages have more than {MAX_CALLS} tool calls", f"{where}.tool_calls")
            pending = {}
            turn["tool_calls"] = []
            for position, call in enumerate(theirs):
                ours, more = _call(call, f"{where}.tool_calls.{position}", MAX_JSON_VALUES - values)
                values += more
                pending.setdefault(str(call.get("id")), []).append(call_id(ours["name"], calls))
                turn["tool_calls"].append(ours)
                calls += 1
            reasoning = message.get("reasoning_content")
            if isinstance(reasoning, str):
                turn["reasoning"] = reasoning
        elif role == "tool":
            turn["role"] = "tool"
            waiting = pending.get(str(message.get("tool_call_id")))
            if not waiting:
                told = f"tool_call_id {message.get('tool_call_id')!r} answers no call of the assistant message before"
                raise bad_request(f"{told}; the calls waiting are {_ids(pending)}", f"{where}.tool_call_id")
            turn["tool_call_id"] = waiting.pop(0)
        else:
            raise bad_request(f"role {role!r} is unknown; use system, user, assistant or tool", f"{where}.role")
        turns.append(turn)
    if turns[-1]["role"] == "assistant":
        raise bad_request("the last message is the assistant's; end with a user or tool message", "messages")
    return Conversation(turns, media, calls)


def _ids(pending: dict[str, list[str]]) -> str:
    return ", ".join(repr(theirs) for theirs, ours in pending.items() if ours) or "none"


def _content(content: Any, role: Any, media: Media, where: str) -> str | list[dict[str, Any]]:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request("a message's content must be a string or a list of parts", where)
    return [_part(part, role, media, f"{where}.{index}") for index, part in enumerate(content)]


def _part(part: Any, role: Any, media: Media, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if not isinstance(kind, str) or kind not in KINDS:
        raise bad_request(f"unknown content part {kind!r}; use text, {' or '.join(KINDS)}", where)
    if role not in ("user", "tool"):
        raise bad_request("only user and tool messages may show images or videos", where)
    return media.add(kind, part.get(kind), where)


def _call(call: Any, where: str, room: int) -> tuple[dict[str, Any], int]:
    """The call in our form. Its arguments' values are counted here: in the body, escapes hide them."""
    try:
        name, text = call["function"]["name"], call["function"]["arguments"]
        if (values := strict_json.most_values(text)) > room:
            told = f"the tool calls' arguments have more than {MAX_JSON_VALUES:,} values"
            raise bad_request(f"{told}, by their commas and opening brackets", where)
        arguments = strict_json.read(text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise bad_request("a tool call needs function.name and function.arguments, JSON as text", where) from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise bad_request("a tool call's function.arguments must be a JSON object as text", where)
    return {"name": name, "arguments": arguments}, values
