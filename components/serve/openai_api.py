"""OpenAI's chat completion request -> the engine's (source: the API reference of chat completions)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from components.serve.conversation import Conversation, read_conversation
from components.serve.errors import ApiError, bad_request
from components.serve.limits import (
    MAX_CHOICES,
    MAX_JSON_VALUES,
    MAX_MESSAGES,
    MAX_NEW_TOKENS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
)
from model.boundary import strict_json
from model.boundary.errors import MoonflowError
from model.codec.chat import encode_chat
from model.codec.declared_tools import DeclarationError, declare
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer, TooManyTokensError
from model.codec.tools import DeclaredTool
from model.data.samples.tokenize import TokenizedSample, expand_media
from model.rollout.protocol import Request


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # of use on shared networks; there is nothing to hide lengths from here


class ChatRequest(BaseModel):
    """The fields that the server uses, and those that do not change an answer. Others are refused, as OpenAI does: a
    caller who sets one that is ignored would not get the answer that was asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    logprobs: bool | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Accepted only with the values for which nothing need be done.
    top_logprobs: int | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    parallel_tool_calls: Literal[True] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    # They describe the caller, not the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def thinking(self) -> bool:
        return bool((self.chat_template_kwargs or {}).get("thinking", False))

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def new_tokens(self) -> int | None:
        """The most that one choice may have; None: as many as the context leaves."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def offers_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


@dataclass(frozen=True)
class Asked:
    """A chat, ready for the engine: one request per choice, and how many tool calls the conversation has had."""

    requests: list[Request]
    calls: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.requests[0].input_ids)


def parse(body: bytes) -> ChatRequest:
    """Raises ApiError that names the first wrong field."""
    # A text of so many commas would not fit a context; values are what takes time and memory.
    if strict_json.most_values(body) > MAX_JSON_VALUES:
        raise bad_request(f"the body has more than {MAX_JSON_VALUES:,} values, by its commas and opening brackets")
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise bad_request("the body must be a JSON object")
    unknown = next((name for name in fields if name not in ChatRequest.model_fields), None)
    if unknown is not None:
        raise bad_request(f"{unknown} is not supported; leave it out", unknown)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise bad_request(f"{where} is not supported; leave it out", where)
    raise bad_request(f"{where}: {first['msg']}", where)


def to_engine(
    chat: ChatRequest,
    tokenizer: Tokenizer,
    image_config: ImageConfig,
    context: int,
    hold: Callable[[int], None] = lambda size: None,
) -> Asked:
    """The engine's requests for a chat; one without a seed gets a random one.

    Args:
        context: tokens the model can see, prompt and answer together.
        hold: called with the bytes that the pixels will take, before they are decoded; may raise ApiError.

    Raises:
        ApiError: what the caller must fix in the request.
    """
    _check_options(chat)
    conversation = read_conversation(chat.messages, image_config)
    try:
        tools = declare(chat.tools or []) if chat.offers_tools else []
        prompt = _prompt(chat, conversation, tools, tokenizer, image_config, context, hold)
    except DeclarationError as error:
        raise bad_request(str(error), error.field) from error
    except MoonflowError as error:
        raise bad_request(str(error), "messages") from error
    ids = prompt.input_ids.tolist()
    seed = secrets.randbits(63) if chat.seed is None else chat.seed
    request = Request(
        ids,
        prompt.pixel_values,
        prompt.grid_thws,
        max_new_tokens=chat.new_tokens or min(context - len(ids), MAX_NEW_TOKENS // chat.choices),
        # The released model's advice: 1.0 to think, 0.6 to answer at once.
        temperature=(1.0 if chat.thinking else 0.6) if chat.temperature is None else chat.temperature,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        stop_token_ids=(tokenizer.im_end_id,),
    )
    return Asked([replace(request, seed=(seed + choice) % 2**64) for choice in range(chat.choices)], conversation.calls)


def _prompt(
    chat: ChatRequest,
    conversation: Conversation,
    tools: Sequence[str | DeclaredTool],
    tokenizer: Tokenizer,
    image_config: ImageConfig,
    context: int,
    hold: Callable[[int], None],
) -> TokenizedSample:
    """The prompt's tokens and pixels. Nothing is tokenised if the media leave no room for text, and nothing is decoded
    before everything is known to fit."""
    media = conversation.media
    room = context - (chat.new_tokens or 1)
    if media.tokens > room:
        raise _too_long(chat, f"at least {media.tokens}", context)
    try:
        encoded = encode_chat(
            conversation.turns, tools, tokenizer, add_generation_prompt=True, thinking=chat.thinking,
            limit=room - media.tokens + len(media.files),  # each has one pad now
        )  # fmt: skip
    except TooManyTokensError as error:
        raise _too_long(chat, f"at least {max(1, room + 1)}", context) from error
    for pixels in (False, True) if media.files else (True,):
        prompt = expand_media(encoded, media.files, tokenizer, image_config, pixels=pixels)
        if len(prompt.input_ids) > room:
            raise _too_long(chat, str(len(prompt.input_ids)), context)
        if not pixels:
            hold(media.patches * 3 * image_config.patch_size**2 * 4)
    return prompt


def _too_long(chat: ChatRequest, tokens: str, context: int) -> ApiError:
    told = f"{tokens} prompt tokens and {chat.new_tokens or 1} to generate exceed the context of {context} tokens"
    return bad_request(f"{told}; shorten the messages or max_tokens", "messages", "context_length_exceeded")


def _check_options(chat: ChatRequest) -> None:
    _check_stops(chat.stops)
    if (chat.new_tokens or 1) * chat.choices > MAX_NEW_TOKENS:
        told = f"n {chat.choices} times {chat.new_tokens} tokens to generate are more than {MAX_NEW_TOKENS:,}"
        raise bad_request(f"{told}; lower n or max_tokens", "n")
    unknown = sorted(set(chat.chat_template_kwargs or {}) - {"thinking"})
    if unknown:
        raise bad_request(f"the chat template has no {unknown[0]!r}; it takes thinking", "chat_template_kwargs")
    if not isinstance((chat.chat_template_kwargs or {}).get("thinking", False), bool):
        raise bad_request("thinking must be true or false", "chat_template_kwargs.thinking")
    if chat.stream_options is not None and not chat.stream:
        raise bad_request("stream_options are only for stream: true", "stream_options")
    if chat.tool_choice == "auto" and not chat.tools:
        raise bad_request("tool_choice needs tools", "tool_choice")


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS or "" in stops:
        raise bad_request(f"stop takes up to {MAX_STOPS} texts, none of them empty", "stop")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise bad_request(f"a stop text may have up to {MAX_STOP_CHARACTERS} characters", "stop")
