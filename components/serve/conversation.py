"""A caller's messages -> our turns and their media (source: the API reference of chat completions)."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from components.serve.errors import bad_request
from model.chat import call_id

MEDIA = {"image_url": "image", "video_url": "video"}
# The most that model.image keeps of an image is 3.2 million pixels; more than this is not worth the memory (ours).
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Conversation:
    """``turns`` as ``model.chat`` renders them, ``media`` by the names in them, ``calls`` made in all of them."""

    turns: list[dict[str, Any]]
    media: dict[str, bytes]
    calls: int


def read_conversation(messages: Sequence[dict[str, Any]]) -> Conversation:
    """Check and translate the messages.

    Tool call ids are the caller's to choose, but the template counts calls: ids are renamed to what it writes.

    Raises:
        ApiError: which message is wrong, and how.
    """
    turns: list[dict[str, Any]] = []
    media: dict[str, bytes] = {}
    calls = 0
    pending: dict[str, list[str]] = {}
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        role = message.get("role")
        turn: dict[str, Any] = {"content": _content(message.get("content"), role, media, f"{where}.content")}
        if role in ("system", "developer"):
            turn["role"] = "system"
        elif role == "user":
            turn["role"] = "user"
        elif role == "assistant":
            turn["role"] = "assistant"
            theirs = message.get("tool_calls") or []
            if not isinstance(theirs, list):
                raise bad_request("tool_calls must be a list", f"{where}.tool_calls")
            pending = {}
            turn["tool_calls"] = []
            for position, call in enumerate(theirs):
                ours = _call(call, f"{where}.tool_calls.{position}")
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


def _content(content: Any, role: Any, media: dict[str, bytes], where: str) -> str | list[dict[str, Any]]:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request("a message's content must be a string or a list of parts", where)
    parts = [_part(part, media, f"{where}.{index}") for index, part in enumerate(content)]
    if role not in ("user", "tool") and any(part["type"] != "text" for part in parts):
        raise bad_request("only user and tool messages may show images or videos", where)
    return parts


def _part(part: Any, media: dict[str, bytes], where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in MEDIA:
        raise bad_request(f"unknown content part {kind!r}; use text, image_url or video_url", where)
    source = part.get(kind)
    url = source.get("url", "") if isinstance(source, dict) else source
    # Fetching addresses that a caller chooses would let him reach our network.
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:200]:
        raise bad_request(f"{kind} must be a data URL: data:image/png;base64,...", where)
    try:
        data = base64.b64decode(url.split(";base64,", 1)[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{kind} is not valid base64: {error}", where) from error
    if kind == "image_url":
        _check_image(data, where)
    name = str(len(media))
    media[name] = data
    return {"type": MEDIA[kind], "media": name}


def _check_image(data: bytes, where: str) -> None:
    """From its header alone, before a small file unfolds into gigabytes of pixels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them raise
        raise bad_request(f"the image of {len(data)} bytes cannot be decoded: give a PNG or JPEG", where) from error
    if width * height > MAX_PIXELS:
        raise bad_request(
            f"the image has {width} x {height} pixels; send at most {MAX_PIXELS:,} of them", where, "image_too_large"
        )


def _call(call: Any, where: str) -> dict[str, Any]:
    try:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise bad_request("a tool call needs function.name and function.arguments, JSON as text", where) from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise bad_request("a tool call's function.arguments must be a JSON object as text", where)
    return {"name": name, "arguments": arguments}
