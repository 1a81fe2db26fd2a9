"""The chat template, on tokens (source: the released chat template).

A conversation is rendered to spans (special tokens, texts, media), and every text between two special tokens is
encoded separately. So the tokens of a prefix never depend on what follows, and a running episode only appends tokens:
``encode_chat(prefix) + generated + encode_turns(results) + ...`` is, token for token, ``encode_chat(whole)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.codec.tokenizer import Tokenizer, TooManyTokensError
from model.codec.tools import TOOLS, DeclaredTool

Message = Mapping[str, Any]

_CALL_ID = re.compile(r"functions\.([A-Za-z_][A-Za-z0-9_-]*):(\d+)")


@dataclass(frozen=True)
class Encoded:
    """A rendered conversation: ``ids``, ``loss`` (is this token a training target?), ``media`` names in pad order."""

    ids: list[int]
    loss: list[bool]
    media: list[str]


@dataclass(frozen=True)
class ToolCall:
    """``id`` is ``functions.NAME:IDX`` with IDX counted over the whole conversation."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class AssistantTurn:
    """A policy's turn. If ``error`` is set (one line, which may be shown to the policy) there are no tool calls."""

    reasoning: str
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Span:
    """A part of a rendered conversation.

    ``kind`` "special": ``text`` is a special token's name; "text": plain text; "media": ``text`` is a media name.
    """

    kind: str
    text: str
    loss: bool = False


def call_id(name: str, index: int) -> str:
    return f"functions.{name}:{index}"


def medium(kind: str, name: str) -> Iterator[Span]:
    """An "image" or "video" with its one pad; ``model.data.samples.tokenize`` expands it when the pixels are known."""
    yield Span("special", "<|media_begin|>")
    yield Span("text", kind)
    yield Span("special", "<|media_content|>")
    yield Span("media", name)
    yield Span("special", "<|media_end|>")


def render(messages: Sequence[Message], tools: Sequence[str | DeclaredTool] = ()) -> Iterator[Span]:
    """The spans of a conversation; tokenizer training reads the "text" ones, so that the template takes few tokens.

    Raises:
        MoonflowError: unknown role, tool or content part; a tool result that answers no call.
    """
    if tools:
        yield from _turn("system", "tool_declare", [Span("text", _declaration(tools))])
    yield from _render_turns(messages, _history_length(messages), [], 0)


def encode_chat(
    messages: Sequence[Message],
    tools: Sequence[str | DeclaredTool],
    tokenizer: Tokenizer,
    add_generation_prompt: bool = False,
    thinking: bool = False,
    limit: int | None = None,
) -> Encoded:
    """Tokens of a whole conversation, one ``<|media_pad|>`` per medium.

    The loss covers what the policy itself would have sampled: assistant bodies, tool calls and the closing
    ``<|im_end|>``; kept reasoning with its ``</think>``. Assistant turns with ``"loss": False`` are left out.

    Args:
        messages: OpenAI-shaped turns, see ``model.data.samples.sample.Sample``.
        tools: what to declare first: names from ``TOOLS``, or other tools.
        add_generation_prompt: end with an open assistant turn.
        thinking: the open turn starts with ``<think>`` instead of the instant mode's ``<think></think>``.
        limit: the most tokens that the messages may have, for a conversation from an untrusted caller.

    Raises:
        TooManyTokensError: the messages have more; the rest is not tokenised.
    """
    encoded = encode_spans(render(messages, tools), tokenizer, limit)
    if add_generation_prompt:
        prompt = encode_spans(_generation_prompt(thinking), tokenizer)
        return Encoded(encoded.ids + prompt.ids, encoded.loss + prompt.loss, encoded.media)
    return encoded


def encode_turns(
    messages: Sequence[Message], tokenizer: Tokenizer, first_call_index: int, thinking: bool = False
) -> list[int]:
    """Tokens to append to a running episode after a completion: ``messages`` and the next generation prompt.

    Args:
        messages: tool results (or user turns, text only). A tool turn has ``tool_call_id``, or else ``name``.
        first_call_index: index, counted over the conversation, of the first call that is answered; the n-th tool turn
            that has only a name gets ``functions.NAME:(first_call_index + n)``.
    """
    numbered: list[Message] = []
    index = first_call_index
    for message in messages:
        if message.get("role") == "tool":
            if "tool_call_id" not in message:
                if "name" not in message:
                    raise MoonflowError("a tool result has neither tool_call_id nor name; say which call it answers")
                message = {**message, "tool_call_id": call_id(message["name"], index)}
            index += 1
        numbered.append(message)
    answered = [message["tool_call_id"] for message in numbered if message.get("role") == "tool"]
    encoded = encode_spans(_render_turns(numbered, 0, answered, index), tokenizer)
    if encoded.media:
        raise MoonflowError(f"turns appended to an episode are text only, but {encoded.media[0]!r} is a medium")
    return encoded.ids + encode_spans(_generation_prompt(thinking), tokenizer).ids


def parse_assistant(ids: Sequence[int], tokenizer: Tokenizer) -> AssistantTurn:
    """Read a completion, which was sampled after the generation prompt: the inverse of rendering an assistant turn.

    It raises for nothing that a policy can sample: a malformed turn has ``error`` set. A completion that ends before
    ``<|im_end|>`` is read to its end.
    """
    rest = list(ids)
    end = tokenizer.im_end_id
    trailing = rest[rest.index(end) + 1 :] if end in rest else []
    rest = rest[: len(rest) - len(trailing)]
    if rest and rest[-1] == end:
        rest.pop()

    reasoning = ""
    think, unthink = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    if unthink in rest:
        cut = rest.index(unthink)
        thoughts, rest = rest[:cut], rest[cut + 1 :]
        reasoning = tokenizer.decode(thoughts[1:] if thoughts[:1] == [think] else thoughts)
    elif rest[:1] == [think]:
        return AssistantTurn(tokenizer.decode(rest[1:]), "", error="the reasoning was not closed with </think>")

    section = tokenizer.token_id("<|tool_calls_section_begin|>")
    body, calls = (rest[: rest.index(section)], rest[rest.index(section) + 1 :]) if section in rest else (rest, None)
    content = tokenizer.decode(body)
    if any(token >= tokenizer.ranks for token in body):
        return AssistantTurn(reasoning, content, error="special tokens stand in the answer's text")
    if trailing:
        return AssistantTurn(reasoning, content, error="tokens follow <|im_end|>")
    if calls is None:
        return AssistantTurn(reasoning, content)
    try:
        return AssistantTurn(reasoning, content, _parse_calls(calls, tokenizer))
    except ValueError as error:
        return AssistantTurn(reasoning, content, error=str(error))


def _declaration(tools: Sequence[str | DeclaredTool]) -> str:
    for tool in tools:
        if isinstance(tool, str) and tool not in TOOLS:
            raise MoonflowError(f"unknown tool {tool!r}; declare some of {', '.join(TOOLS)}")
    declared = [TOOLS[tool] if isinstance(tool, str) else tool for tool in tools]
    return "namespace functions {\n" + "".join(tool.typescript for tool in declared) + "}"


def _history_length(messages: Sequence[Message]) -> int:
    """Turns before this index lose their reasoning: those up to the last assistant turn without tool calls.

    A final assistant turn is the one being written (trained on, or just sampled), so it is not history yet.
    """
    last = len(messages) - 1
    for index in range(last if messages and messages[last].get("role") == "assistant" else last + 1)[::-1]:
        if messages[index].get("role") == "assistant" and not messages[index].get("tool_calls"):
            return index + 1
    return 0


def _render_turns(messages: Sequence[Message], history: int, pending: list[str], calls: int) -> Iterator[Span]:
    """The spans of turns, given the ids of calls not answered yet and the number of calls before these turns."""
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in ("system", "user"):
            yield from _turn(role, role, _content(message))
        elif role == "assistant":
            ids = [call_id(call["name"], calls + n) for n, call in enumerate(message.get("tool_calls") or ())]
            calls += len(ids)
            pending = ids
            yield from _assistant(message, ids, keep_reasoning=index >= history)
        elif role == "tool":
            answers = message.get("tool_call_id", pending[0] if pending else None)
            if answers not in pending:
                raise MoonflowError(
                    f"tool result {index} answers {answers!r}, but the calls waiting for results are "
                    f"{pending}; ids are functions.NAME:IDX, counted over the conversation"
                )
            pending = [waiting for waiting in pending if waiting != answers]
            yield from _turn("system", "tool", [Span("text", f"## Return of {answers}\n"), *_content(message)])
        else:
            raise MoonflowError(f"message {index} has role {role!r}; use system, user, assistant or tool")


def _turn(role: str, name: str, body: Iterable[Span]) -> Iterator[Span]:
    yield Span("special", f"<|im_{role}|>")
    yield Span("text", name)
    yield Span("special", "<|im_middle|>")
    yield from body
    yield Span("special", "<|im_end|>")


def _generation_prompt(thinking: bool) -> Iterator[Span]:
    yield Span("special", "<|im_assistant|>")
    yield Span("text", "assistant")
    yield Span("special", "<|im_middle|>")
    yield Span("special", "<think>")
    if not thinking:
        yield Span("special", "</think>")


def _assistant(message: Message, ids: Sequence[str], keep_reasoning: bool) -> Iterator[Span]:
    loss = bool(message.get("loss", True))
    reasoning = (message.get("reasoning") or "") if keep_reasoning else ""
    yield from _generation_prompt(thinking=bool(reasoning))
    if reasoning:
        yield Span("text", reasoning, loss)
        yield Span("special", "</think>", loss)
    for span in _content(message):
        if span.kind != "text":
            raise MoonflowError("an assistant turn has media in its content; only user and tool turns may show media")
        yield Span("text", span.text, loss)
    if ids:
        yield Span("special", "<|tool_calls_section_begin|>", loss)
        for name, call in zip(ids, message["tool_calls"], strict=True):
            yield Span("special", "<|tool_call_begin|>", loss)
            yield Span("text", name, loss)
            yield Span("special", "<|tool_call_argument_begin|>", loss)
            yield Span("text", json.dumps(call["arguments"], ensure_ascii=False), loss)
            yield Span("special", "<|tool_call_end|>", loss)
        yield Span("special", "<|tool_calls_section_end|>", loss)
    yield Span("special", "<|im_end|>", loss)


def _content(message: Message) -> Iterator[Span]:
    content = message.get("content") or ""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            yield Span("text", part["text"])
        elif part["type"] in ("image", "video"):
            yield from medium(part["type"], part["media"])
            yield Span("text", "\n")
        else:
            raise MoonflowError(f"unknown content part {part['type']!r}; use text, image or video")


def encode_spans(spans: Iterable[Span], tokenizer: Tokenizer, limit: int | None = None) -> Encoded:
    """Tokens of spans. Adjacent texts of equal loss are encoded as one text, as an engine does that gets a string.

    Raises:
        TooManyTokensError: there are more than ``limit``.
    """
    ids: list[int] = []
    loss: list[bool] = []
    media: list[str] = []
    texts: list[str] = []
    text_loss = False
    if limit is not None:
        spans = list(spans)
        if sum(_fewest_tokens(span, tokenizer) for span in spans) > limit:
            raise TooManyTokensError(f"the conversation has more than {limit} tokens")

    def flush() -> None:
        text = "".join(texts)
        texts.clear()
        if text:
            tokens = tokenizer.encode(text) if limit is None else tokenizer.encode_within(text, limit - len(ids))
            ids.extend(tokens)
            loss.extend([text_loss] * len(tokens))

    for span in spans:
        if span.kind == "text":
            if span.loss != text_loss:
                flush()
            texts.append(span.text)
            text_loss = span.loss
            continue
        flush()
        ids.append(tokenizer.media_pad_id if span.kind == "media" else tokenizer.token_id(span.text))
        loss.append(span.loss)
        if span.kind == "media":
            media.append(span.text)
    flush()
    if limit is not None and len(ids) > limit:
        raise TooManyTokensError(f"the conversation has more than {limit} tokens")
    return Encoded(ids, loss, media)


def _fewest_tokens(span: Span, tokenizer: Tokenizer) -> int:
    """A token may hold the end of a text and the beginning of the next, so a text counts for one token less."""
    return tokenizer.fewest_tokens(len(span.text)) - 1 if span.kind == "text" and span.text else span.kind != "text"


def parse_call(tokens: Sequence[int], tokenizer: Tokenizer) -> ToolCall:
    """The call between ``<|tool_call_begin|>`` and ``<|tool_call_end|>``, both left out.

    Raises:
        ValueError: saying what is malformed.
    """
    argument = tokenizer.token_id("<|tool_call_argument_begin|>")
    if argument not in tokens:
        raise ValueError("a tool call has no <|tool_call_argument_begin|>")
    middle = list(tokens).index(argument)
    name = tokenizer.decode(tokens[:middle])
    match = _CALL_ID.fullmatch(name)
    if match is None:
        raise ValueError(f"the call id {name!r} is not of the form functions.NAME:IDX")
    try:
        arguments = read_json(tokenizer.decode(tokens[middle + 1 :]))
    except ValueError as error:
        raise ValueError(f"the arguments of {name} are not JSON") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} are not a JSON object")
    return ToolCall(name, match[1], arguments)


def _parse_calls(tokens: list[int], tokenizer: Tokenizer) -> list[ToolCall]:
    """The calls of a tool-call section after its opening token; raises ValueError that says what is malformed."""
    begin, argument, end, section_end = (
        tokenizer.token_id(f"<|{name}|>")
        for name in ("tool_call_begin", "tool_call_argument_begin", "tool_call_end", "tool_calls_section_end")
    )
    calls: list[ToolCall] = []
    while tokens and tokens[0] == begin:
        if argument not in tokens or end not in tokens or tokens.index(argument) > tokens.index(end):
            raise ValueError("a tool call was not closed with <|tool_call_end|>")
        close = tokens.index(end)
        calls.append(parse_call(tokens[1:close], tokenizer))
        tokens = tokens[close + 1 :]
    if tokens != [section_end]:
        raise ValueError("the tool calls section is malformed or was not closed with <|tool_calls_section_end|>")
    if not calls:
        raise ValueError("the tool calls section is empty")
    return calls
