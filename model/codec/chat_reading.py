"""A prompt's tokens read back into messages: the inverse of the chat template, for engines that take messages (ours).

Nothing is lost but what the template leaves out itself: the names of media, and how a turn's text was cut into parts.
A malformed assistant turn comes back as its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.boundary.errors import MoonflowError
from model.codec.chat import encode_chat, parse_assistant
from model.codec.tokenizer import Tokenizer

_DECLARED = re.compile(r"^type ([A-Za-z_][A-Za-z0-9_-]*) = ", re.MULTILINE)
_RETURN = re.compile(r"## Return of (.*?)\n(.*)", re.DOTALL)
_ROLES = {"<|im_system|>": "system", "<|im_user|>": "user", "<|im_assistant|>": "assistant"}
_NAMES = {"system": ("system", "tool", "tool_declare"), "user": ("user",), "assistant": ("assistant",)}


@dataclass(frozen=True)
class ReadChat:
    """A conversation that waits for the assistant.

    Attributes:
        messages: turns as OpenAI's API has them. Contents are texts, or lists of ``{"type": "text", "text": ...}`` and
            ``{"type": "image"}`` parts; the n-th image of the conversation is its n-th medium.
        tools: names of the declared tools, of ``model.codec.tools.TOOLS``.
        calls: how many tool calls the conversation has had.
        thinking: whether the open turn is in thinking mode.
    """

    messages: list[dict[str, Any]]
    tools: list[str]
    calls: int
    thinking: bool


def read_chat(ids: Sequence[int], tokenizer: Tokenizer) -> ReadChat:
    """The conversation of a prompt that ends with an open assistant turn.

    Raises:
        MoonflowError: the prompt is not of this template, declares a tool that is not in ``TOOLS``, or shows a video.
    """
    messages: list[dict[str, Any]] = []
    tools: list[str] = []
    calls = 0
    turns = list(_turns(list(ids), tokenizer))
    for role, name, body, whole in turns[:-1]:
        if role == "system" and name == "tool_declare":
            tools = _DECLARED.findall(tokenizer.decode(body))
            if encode_chat([], tools, tokenizer).ids != whole:
                raise MoonflowError(f"a prompt declares tools in other words than {', '.join(tools)} have")
        elif role == "system" and name == "tool":
            if (answer := _RETURN.fullmatch(tokenizer.decode(body))) is None:
                raise MoonflowError("a tool's turn in a prompt does not say which call it answers")
            messages.append({"role": "tool", "tool_call_id": answer[1], "content": answer[2]})
        elif role == "assistant":
            messages.append(_assistant(body, tokenizer))
            calls += len(messages[-1].get("tool_calls", ()))
        else:
            messages.append({"role": role, "content": _content(body, tokenizer)})
    think, unthink = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    role, _, body, whole = turns[-1] if turns else ("", "", [], [])
    if role != "assistant" or body not in ([think], [think, unthink]) or whole[-1] == tokenizer.im_end_id:
        raise MoonflowError("a prompt does not end with an open turn of the assistant")
    return ReadChat(messages, tools, calls, thinking=body == [think])


def _turns(ids: list[int], tokenizer: Tokenizer) -> Iterator[tuple[str, str, list[int], list[int]]]:
    """Role, name, body and all tokens of each turn; the last one may be open."""
    roles = {tokenizer.token_id(token): role for token, role in _ROLES.items()}
    middle, end = tokenizer.token_id("<|im_middle|>"), tokenizer.im_end_id
    start = 0
    while start < len(ids):
        if ids[start] not in roles or middle not in ids[start:]:
            raise MoonflowError(f"token {start} of a prompt opens no turn")
        cut = ids.index(middle, start)
        stop = ids.index(end, cut) if end in ids[cut:] else len(ids)
        role, name = roles[ids[start]], tokenizer.decode(ids[start + 1 : cut])
        if name not in _NAMES[role]:
            raise MoonflowError(f"token {start} of a prompt opens a turn of {role} named {name[:100]!r}")
        yield role, name, ids[cut + 1 : stop], ids[start : stop + 1]
        start = stop + 1


def _assistant(body: list[int], tokenizer: Tokenizer) -> dict[str, Any]:
    turn = parse_assistant(body, tokenizer)
    if turn.error is not None:
        unthink = tokenizer.token_id("</think>")
        said = body[body.index(unthink) + 1 :] if unthink in body else body
        return {"role": "assistant", "content": tokenizer.decode(said)}
    message: dict[str, Any] = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in turn.tool_calls
        ]
    return message


def _content(body: list[int], tokenizer: Tokenizer) -> str | list[dict[str, Any]]:
    begin, end = tokenizer.token_id("<|media_begin|>"), tokenizer.token_id("<|media_end|>")
    if begin not in body:
        return tokenizer.decode(body)
    parts: list[dict[str, Any]] = []
    text: list[int] = []

    def flush() -> None:
        said = tokenizer.decode(text)
        if parts:
            said = said.removeprefix("\n")  # which the template writes after a medium
        if said:
            parts.append({"type": "text", "text": said})
        text.clear()

    position = 0
    while position < len(body):
        if body[position] != begin:
            text.append(body[position])
            position += 1
            continue
        flush()
        close = body.index(end, position)
        kind = tokenizer.decode(body[position + 1 : body.index(tokenizer.token_id("<|media_content|>"), position)])
        if kind != "image":
            raise MoonflowError(f"a prompt shows a medium of kind {kind!r}; messages can only show images")
        parts.append({"type": "image"})
        position = close + 1
    flush()
    return parts
