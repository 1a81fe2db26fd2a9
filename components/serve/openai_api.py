"""OpenAI's chat completion format <-> our conversations (source: the API reference of chat completions)."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.chat import AssistantTurn, ToolCall, encode_chat
from model.data.sample import Sample
from model.data.tokenize import tokenize
from model.errors import MoonflowError
from model.image import ImageConfig
from model.rollout.protocol import Completion, Request
from model.tokenizer import Tokenizer

MEDIA = {"image_url": "image", "video_url": "video"}
UNSUPPORTED = ("stop", "logprobs", "logit_bias", "response_format", "functions")


class ChatRequest(BaseModel):
    """The fields we heed. Those in UNSUPPORTED are refused; others do not change the answer and are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int = 0
    n: Literal[1] = 1
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none"] = "auto"
    stream: bool = False
    stream_options: dict[str, Any] = {}
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def thinking(self) -> bool:
        return bool(self.chat_template_kwargs.get("thinking", False))


def to_request(chat: ChatRequest, tokenizer: Tokenizer, image_config: ImageConfig, context: int) -> Request:
    """The engine's request for a chat.

    Raises:
        MoonflowError: what the caller must mend in the request.
    """
    for name in UNSUPPORTED:
        if (chat.model_extra or {}).get(name):
            raise MoonflowError(f"{name} is not supported; leave it out")
    media: dict[str, bytes] = {}
    messages = [_message(message, media) for message in chat.messages]
    if messages[-1]["role"] == "assistant":
        raise MoonflowError("the last message is the assistant's; end with a user or tool message")
    tools = [_tool_name(tool) for tool in chat.tools] if chat.tool_choice == "auto" else []
    sample = Sample("chat", "request", "knowledge", "text", "request", messages=messages, tools=tools, media=media)
    prompt = tokenize(sample, tokenizer, image_config)
    # A prefix's tokens do not depend on what follows, so the open turn may be encoded on its own.
    opened = encode_chat([], [], tokenizer, add_generation_prompt=True, thinking=chat.thinking).ids
    ids = [*prompt.input_ids.tolist(), *opened]
    wanted = chat.max_completion_tokens or chat.max_tokens
    if len(ids) + (wanted or 1) > context:
        raise MoonflowError(
            f"{len(ids)} prompt tokens and {wanted or 1} to generate exceed the context of {context} tokens"
        )
    return Request(
        ids,
        prompt.pixel_values,
        prompt.grid_thws,
        max_new_tokens=wanted or context - len(ids),
        # The released model's advice: 1.0 to think, 0.6 to answer at once.
        temperature=(1.0 if chat.thinking else 0.6) if chat.temperature is None else chat.temperature,
        top_p=chat.top_p,
        stop_token_ids=(tokenizer.im_end_id,),
        seed=chat.seed,
    )


def to_response(
    identity: str, model: str, request: Request, completion: Completion, turn: AssistantTurn
) -> dict[str, Any]:
    """The ``chat.completion`` object."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [_call(call) for call in turn.tool_calls]
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": finish_reason(completion, turn), "logprobs": None}
        ],
        "usage": usage(request, completion),
    }


def to_chunks(response: dict[str, Any], tokens: Sequence[str], include_usage: bool) -> Iterator[str]:
    """A finished response as server-sent events: ``tokens`` are the pieces of its content."""
    choice = response["choices"][0]
    head = {key: response[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if "reasoning_content" in choice["message"]:
        deltas.append({"reasoning_content": choice["message"]["reasoning_content"]})
    deltas += [{"content": token} for token in tokens]
    calls = choice["message"].get("tool_calls", [])
    deltas += [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(calls)]
    for delta in deltas:
        yield _event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    if include_usage:
        yield _event(head | {"choices": [], "usage": response["usage"]})
    yield "data: [DONE]\n\n"


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def usage(request: Request, completion: Completion) -> dict[str, int]:
    prompt, generated = len(request.input_ids), len(completion.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def finish_reason(completion: Completion, turn: AssistantTurn) -> str:
    return "tool_calls" if turn.tool_calls else "length" if completion.finish_reason == "length" else "stop"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _message(message: dict[str, Any], media: dict[str, bytes]) -> dict[str, Any]:
    """One message in our form; its media are added to ``media``."""
    content = message.get("content") or ""
    if not isinstance(content, str | list):
        raise MoonflowError("a message's content must be a string or a list of parts")
    ours = {
        "role": message.get("role"),
        "content": content if isinstance(content, str) else [_part(p, media) for p in content],
    }
    if message.get("tool_calls"):
        ours["tool_calls"] = [_their_call(call) for call in message["tool_calls"]]
    if message.get("reasoning_content"):
        ours["reasoning"] = message["reasoning_content"]
    if message.get("tool_call_id"):
        ours["tool_call_id"] = message["tool_call_id"]
    return ours


def _part(part: Any, media: dict[str, bytes]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in MEDIA:
        raise MoonflowError(f"unknown content part {kind!r}; use text, image_url or video_url")
    source = part.get(kind)
    url = source.get("url", "") if isinstance(source, dict) else source
    # Fetching addresses that a caller chooses would let him reach our network.
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url:
        raise MoonflowError(f"{kind} must be a data URL: data:image/png;base64,...")
    name = f"{len(media)}"
    try:
        media[name] = base64.b64decode(url.split(";base64,", 1)[1], validate=True)
    except binascii.Error as error:
        raise MoonflowError(f"{kind} is not valid base64: {error}") from error
    return {"type": MEDIA[kind], "media": name}


def _their_call(call: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
    except (KeyError, TypeError, ValueError) as error:
        raise MoonflowError("a tool call needs function.name and function.arguments (a JSON object as text)") from error


def _tool_name(tool: dict[str, Any]) -> str:
    try:
        return str(tool["function"]["name"])
    except (KeyError, TypeError) as error:
        raise MoonflowError("a tool needs function.name") from error
