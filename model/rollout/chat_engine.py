"""Rollouts over any OpenAI-compatible server: POST /v1/chat/completions with messages (source: OpenAI's API reference).

The prompt's tokens are read back into messages, pictures and tools; the answer, with the tool calls that the server
parsed, is written as tokens again. So an episode runs as on any engine, but its tokens are the canonical ones of the
server's text, not those that were sampled, and they have no log-probs: for evaluation, not for training.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

from model.boundary.errors import MoonflowError
from model.codec.chat import call_id
from model.codec.chat_reading import ReadChat, read_chat
from model.codec.image import ImageConfig
from model.codec.tokenizer import SPECIALS, Tokenizer
from model.codec.tools import TOOLS
from model.rollout.http_calls import ATTEMPTS, BACKOFF_S, TIMEOUT_S, HttpCalls, Refused
from model.rollout.keys import ENGINE_KEY
from model.rollout.pictures import pictures
from model.rollout.protocol import Completion, Request

log = logging.getLogger(__name__)

PATH = "/v1/chat/completions"
UNKNOWN_LOGPROB = 0.0
MODE = "chat_template_kwargs"  # a field of vLLM and SGLang, not of OpenAI's API
UNKNOWN_FIELD = {400, 422}  # how servers that take no other fields refuse one: as OpenAI's, or as FastAPI's
# What a server could not parse it shows as text; "[PAD]" and the like are too common in texts to mean a token.
_SPECIAL = re.compile("(" + "|".join(re.escape(name) for name in SPECIALS if name.startswith("<")) + ")")


class ChatEngine:
    """A ``model.rollout.protocol.RolloutEngine`` on a server that takes messages.

    The server must hold the same checkpoint, and take the mode, instant or thinking, from ``chat_template_kwargs``. If
    it refuses that field, it is asked without from then on, and answers in the mode that it has. It returns thinking
    as ``reasoning_content``, or in the content up to ``</think>``. It ends an answer by itself at the end of the turn;
    other stop tokens cannot be given.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Tokenizer,
        image_config: ImageConfig | None = None,
        attempts: int = ATTEMPTS,
        backoff_s: float = BACKOFF_S,
        timeout_s: float = TIMEOUT_S,
        key: str = ENGINE_KEY,
    ) -> None:
        """
        Args:
            url: base URL without ``/v1``.
            model: the server's name for it.
            image_config: the checkpoint's ``media_proc_cfg``; by default the released values.
            attempts, backoff_s, timeout_s, key: of calls, see ``model.rollout.http_calls``.
        """
        self._calls = HttpCalls("the server", url, attempts, backoff_s, timeout_s, key)
        self._model = model
        self._tokenizer = tokenizer
        self._image_config = image_config or ImageConfig()
        self._takes_mode = True  # until it refuses the field

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of ``requests``, in their order; log-probs are UNKNOWN_LOGPROB.

        An answer that takes more tokens than allowed when it is written again is cut ("length").

        Raises:
            Transient: the server is unreachable.
            MoonflowError: it refuses the request or answers with no chat completion; or the request has a video or a
                prompt that is not of our chat template.
        """
        bodies = [self._body(request) for request in requests]
        async with self._calls.client() as client:
            calls = [asyncio.create_task(self._asked(client, body)) for body, _ in bodies]
            try:
                answers = await asyncio.gather(*calls)
            finally:
                for call in calls:
                    call.cancel()
        return [
            self._completion(answer, request, chat)
            for answer, request, (_, chat) in zip(answers, requests, bodies, strict=True)
        ]

    async def update_weights(self, checkpoint: Path) -> None:
        """MoonflowError: such a server cannot be told to load other weights."""
        raise MoonflowError(f"{self._calls.name} cannot load {checkpoint}: start it with that checkpoint")

    async def _asked(self, client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer. One that refuses the mode's field is asked again without it, and never gets it again.

        Only an answer without it shows that it was the reason: some servers repeat the request in any error.
        """
        plain = {name: value for name, value in body.items() if name != MODE}
        if self._takes_mode:
            try:
                return await self._calls.call(client, PATH, body)
            except Refused as refused:
                if refused.status not in UNKNOWN_FIELD or MODE not in refused.answer:
                    raise
        answer = await self._calls.call(client, PATH, plain)
        if self._takes_mode:
            self._takes_mode = False
            log.warning("%s refuses %s: it is asked without, and thinks or not as it is set up", self._calls.name, MODE)
        return answer

    def _body(self, request: Request) -> tuple[dict[str, Any], ReadChat]:
        """The request in OpenAI's terms, and the conversation that it continues."""
        chat = read_chat(request.input_ids, self._tokenizer)
        images = iter(pictures(request, self._image_config, "a chat server"))
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_shown(message, images) for message in chat.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": 0.0 if request.greedy else request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            MODE: {"thinking": chat.thinking},
        }
        if chat.tools:
            body["tools"] = [TOOLS[name].declaration for name in chat.tools]
        return body, chat

    def _completion(self, answer: dict[str, Any], request: Request, chat: ReadChat) -> Completion:
        try:
            choice = answer["choices"][0]
            message, reason = choice["message"], choice["finish_reason"]
            tokens = self._tokens(message.get("content") or "", message.get("tool_calls") or [], chat.calls)
            if chat.thinking and self._tokenizer.token_id("</think>") not in tokens:
                tokens = self._thoughts(message, closed=bool(tokens) or reason != "length") + tokens
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise MoonflowError(f"{self._calls.name} answered with no chat completion") from error
        if reason not in ("stop", "tool_calls", "length", "abort"):
            raise MoonflowError(f"{self._calls.name} answered with an unknown finish_reason {reason!r}")
        if reason in ("stop", "tool_calls"):
            tokens.append(self._tokenizer.im_end_id)
        ended: Literal["stop", "length", "abort"] = "stop" if reason == "tool_calls" else reason
        if len(tokens) > request.max_new_tokens:
            tokens, ended = tokens[: request.max_new_tokens], "length"
        return Completion(tokens, [UNKNOWN_LOGPROB] * len(tokens), ended)

    def _thoughts(self, message: dict[str, Any], closed: bool) -> list[int]:
        """The tokens of a turn's thinking, of which ``<think>`` stands in the prompt."""
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        return self._tokenizer.encode(thought) + [self._tokenizer.token_id("</think>")] * closed

    def _tokens(self, content: str, calls: list[dict[str, Any]], index: int) -> list[int]:
        """The tokens of an assistant's turn. Ids count over the conversation, whatever ids the server gives."""
        tokenizer = self._tokenizer
        ids = [token for part in _SPECIAL.split(content) if part for token in self._part(part)]
        if not calls:
            return ids
        ids.append(tokenizer.token_id("<|tool_calls_section_begin|>"))
        for number, call in enumerate(calls, index):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            ids.append(tokenizer.token_id("<|tool_call_begin|>"))
            ids += tokenizer.encode(call_id(str(name), number))
            ids.append(tokenizer.token_id("<|tool_call_argument_begin|>"))
            ids += tokenizer.encode(text)
            ids.append(tokenizer.token_id("<|tool_call_end|>"))
        ids.append(tokenizer.token_id("<|tool_calls_section_end|>"))
        return ids

    def _part(self, text: str) -> list[int]:
        return [self._tokenizer.token_id(text)] if _SPECIAL.fullmatch(text) else self._tokenizer.encode(text)


def _shown(message: dict[str, Any], images: Iterator[str]) -> dict[str, Any]:
    """The message with its images as data URLs."""
    if not isinstance(message["content"], list):
        return message
    parts = [
        part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": next(images)}}
        for part in message["content"]
    ]
    return {**message, "content": parts}
