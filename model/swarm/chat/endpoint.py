"""An OpenAI-compatible endpoint that speaks for all agents of a swarm (source: OpenAI's API reference).

The ``openai`` package calls it and tries again, with growing pauses, on 408, 409, 429, 5xx, time-outs and lost
connections; one deadline holds for all tries of a request together, so that a server which hangs holds an agent no
longer. Answers are read here, as a server of anybody's may send anything.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

import httpx
import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.boundary.errors import MoonflowError, Transient, Unavailable, did_you_mean
from model.boundary.untrusted_text import read_json, shown, well_formed
from model.codec.chat import ToolCall
from model.rollout.endpoint import server_url
from model.swarm.chat.tools import MAX_NAME, ToolError, as_arguments

RETRIES = 5
TIMEOUT_S = 600.0  # of one completion, all tries and pauses together: 32,000 tokens at 55 a second (ours)
CONNECT_S = 10.0
LISTING_S = 30.0  # of the question which models there are (ours)
OTHERS = ("OpenAI-Organization", "OpenAI-Project")  # headers
BYTES_PER_TOKEN = 3  # of texts that no server has counted yet; on the safe side (ours)
PICTURE_TOKENS = 1_000  # of a picture that no server has counted: about one of a megapixel (ours)
_PICTURE = re.compile(r'"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]*"')

T = TypeVar("T")


class Late(MoonflowError):
    """The server gave no answer in time: it hangs, or has too much to do."""


class _Function(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = ""


class _Call(BaseModel):
    id: str | None = None
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(strict=True)

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True)
class Reply:
    """One turn of an agent.

    Attributes:
        message: the turn, as the next request repeats it.
        content, thinking: what it says; "" if nothing.
        calls: its tool calls, each with an id of its own.
        malformed: id -> what is wrong with the arguments of that call.
        finish_reason: as the server gives it.
        prompt_tokens, new_tokens: tokens read and written; ``counted`` says whether the server counted them.
    """

    message: dict[str, Any]
    content: str
    thinking: str
    calls: list[ToolCall]
    malformed: dict[str, str]
    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    counted: bool


@dataclass
class ChatEndpoint:
    """A model behind a URL. Use it as an async context manager.

    Args:
        url: base of the API; ``/v1`` is added to one without a path.
        model: the server's name for it; "" for the only one that it serves, which `context` looks up.
        key: sent as a bearer token; it is in no message and in no error. "" for none.
        timeout_s: that one completion may take, all tries and the pauses between them together.
        retries: tries after the first one.
        when_late: what the user can do if ``timeout_s`` is too short, with the options of the command that asks.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = TIMEOUT_S
    retries: int = RETRIES
    when_late: str = ""

    def __post_init__(self) -> None:
        self.url = _base(self.url)
        if not all("!" <= character <= "~" for character in self.key):
            raise MoonflowError("the key has characters that no HTTP header can hold: give the server's key alone")

    async def __aenter__(self) -> ChatEndpoint:
        self._client = openai.AsyncOpenAI(
            base_url=self.url, api_key=self.key or "none", max_retries=self.retries,
            timeout=openai.Timeout(None, connect=CONNECT_S),  # `_within` limits the whole
            # Not those of another provider, which the package would read from the environment.
            default_headers={name: openai.Omit() for name in OTHERS},  # type: ignore[misc]
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def context(self) -> int | None:
        """Ask for the models that are served; how many tokens ours holds, None if the server does not say.

        Raises:
            Transient: nothing can be reached.
            Late: it hangs.
            MoonflowError: the key is refused, other models are served, or the only one is asked for and there are more.
        """
        try:
            client = self._client.with_options(max_retries=1)
            raw = await self._within(LISTING_S, client.models.with_raw_response.list())
            listed = read_json(raw.text)["data"]
            served = {str(one["id"]): one for one in listed}
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            self._fail(error)
        except (openai.OpenAIError, ValueError, KeyError, TypeError):
            if self.model:
                return None  # not every server lists its models
            served = {}
        if not self.model:
            if len(served) != 1:
                has = ", ".join(shown(name, 60) for name in list(served)[:5]) or "no list of models"
                raise MoonflowError(f"{self.url} has {has}: name one with --model")
            self.model = next(iter(served))
        if served and self.model not in served:
            names = ", ".join(shown(name, 60) for name in list(served)[:5])
            raise MoonflowError(
                f"{self.url} has no model {shown(self.model)}; it has {names}{did_you_mean(self.model, served)}"
            )
        most = served.get(self.model, {}).get("max_model_len")
        return most if isinstance(most, int) and most > 0 else None

    async def complete(self, messages: Sequence[Any], tools: Sequence[Any], max_tokens: int) -> Reply:
        """The next turn of a conversation, of at most ``max_tokens``.

        Raises:
            Unavailable: nobody answers, the key is refused, or there is no such model.
            Late: it takes longer than ``timeout_s``.
            MoonflowError: the server refuses the request, fails, or answers with no chat completion.
        """
        offered: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            asking = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=cast(Any, list(messages)), max_tokens=max_tokens, **offered
            )
            raw = await self._within(self.timeout_s, asking, self.when_late)
        except openai.OpenAIError as error:
            self._fail(error, tools=bool(tools))
        try:
            answer = _Completion.model_validate(read_json(raw.text))
        except ValueError as error:
            wrong = error.errors(include_url=False)[0]["loc"] if isinstance(error, ValidationError) else "no JSON"
            raise MoonflowError(f"{self.url} answered with no chat completion ({shown(str(wrong))})") from error
        return _reply(answer, messages, tools)

    async def _within(self, seconds: float, answer: Awaitable[T], advice: str = "") -> T:
        """Wait for an answer; Late, with the advice, if it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            told = f"{self.url} gave no answer within {seconds:g} s: see whether it hangs or has too much to do"
            raise Late(told + (f"; {advice}" if advice else "")) from None

    def _fail(self, error: openai.OpenAIError, tools: bool = False) -> NoReturn:
        """Raise an error of one line, without the key, which some servers repeat."""
        said = str(error)
        if isinstance(error, openai.APIStatusError):
            said = f"HTTP {error.status_code}: {_said(error)}"
        said = shown(" ".join((said.replace(self.key, "<key>") if self.key else said).split()), 300)
        if isinstance(error, openai.APIConnectionError):
            raise Transient(f"{self.url} cannot be reached ({said}): is it running?") from None
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            raise Unavailable(f"{self.url} refuses the key ({said}): name its variable with --api-key-env") from None
        if isinstance(error, openai.NotFoundError):
            raise Unavailable(f"{self.url} has no chat completions of model {shown(self.model)} ({said})") from None
        if (
            tools
            and isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
            and "tool" in said.lower()
        ):
            raise MoonflowError(
                f"{self.url} takes no tools ({said}): start it with tool calls; vLLM needs --enable-auto-tool-choice "
                "and --tool-call-parser, SGLang --tool-call-parser"
            ) from None
        raise MoonflowError(f"{self.url} answered {said}") from None


def _base(url: str) -> str:
    """The base of the API at a URL."""
    base = server_url(url, "give the key with --api-key-env")
    return base + ("" if httpx.URL(base).path.strip("/") else "/v1")


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return str(body or error.message)


def _reply(answer: _Completion, messages: Sequence[Any], tools: Sequence[Any]) -> Reply:
    choice = answer.choices[0]
    content = well_formed(choice.message.content or "")
    thinking = well_formed(choice.message.reasoning_content or choice.message.reasoning or "")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:  # Kimi's models must see what they thought before a call
        message["reasoning_content" if choice.message.reasoning_content else "reasoning"] = thinking
    calls, malformed, repeated = _calls(choice.message.tool_calls or [], messages)
    if repeated:
        message["tool_calls"] = repeated
    used, counted = answer.usage, answer.usage is not None
    read = used.prompt_tokens if used else tokens_of([messages, tools])
    wrote = used.completion_tokens if used else tokens_of(message)
    return Reply(message, content, thinking, calls, malformed, choice.finish_reason or "stop", read, wrote, counted)


def _calls(
    told: Sequence[_Call], messages: Sequence[Any]
) -> tuple[list[ToolCall], dict[str, str], list[dict[str, Any]]]:
    """The calls of a turn, what is wrong with them by id, and the calls as the next request repeats them."""
    calls: list[ToolCall] = []
    malformed: dict[str, str] = {}
    repeated = []
    ids = {call["id"] for message in messages for call in message.get("tool_calls", ())}
    for call in told:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", call.function.name)[:MAX_NAME] or "_"
        own = call.id if call.id and call.id not in ids else f"functions.{name}:{len(ids)}"
        ids.add(own)
        try:
            written = call.function.arguments
            arguments = as_arguments(read_json(written or "{}") if isinstance(written, str | None) else written)
        except (ValueError, ToolError) as error:
            malformed[own] = f"error: {name}: the arguments cannot be read: {shown(str(error))}"
            arguments = {}
        calls.append(ToolCall(own, name, arguments))
        # What could not be read would break the template of a server that reads it.
        kept = written if isinstance(written, str) and own not in malformed and written else _json(arguments)
        repeated.append({"id": own, "type": "function", "function": {"name": name, "arguments": well_formed(kept)}})
    return calls, malformed, repeated


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def tokens_of(value: Any) -> int:
    """About how many tokens a value of JSON takes; rather more than less."""
    text, pictures = _PICTURE.subn('""', well_formed(_json(value)))
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN) + pictures * PICTURE_TOKENS
