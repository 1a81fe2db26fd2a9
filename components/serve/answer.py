"""From a chat's generations to its HTTP response, whole or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Send

from components.serve import replies
from components.serve.engine_process import EngineProcess, Generation, Token
from components.serve.errors import ApiError
from components.serve.openai_api import Asked, ChatRequest
from components.serve.turn_reader import Delta, TurnReader
from model.boundary import strict_json
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer

JSON = b"application/json"
AT_ONCE = 512  # tokens of a whole answer that are read before other requests have their turn
EVENTS = b"text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class ReadyModel:
    """A verified checkpoint, ready to answer; ``context`` in tokens."""

    engine: EngineProcess
    tokenizer: Tokenizer
    image_config: ImageConfig
    context: int
    manifest_sha256: str


class Answer:
    """The generations of one chat, which begin when it is made. Call ``abandon`` at the end in any case."""

    def __init__(self, chat: ChatRequest, asked: Asked, loaded: ReadyModel) -> None:
        self._chat = chat
        self._asked = asked
        self._tokenizer = loaded.tokenizer
        self._reply = replies.Reply(chat.model, loaded.manifest_sha256)
        self._generations = loaded.engine.begin(asked.requests)
        self._used = [0] * len(self._generations)
        self._stopped = [False] * len(self._generations)  # by a stop text
        self._begun = False
        self._writing = asyncio.Lock()

    async def send(self, send: Send) -> None:
        """Write the response as it is generated; raises what the engine failed with."""
        if self._chat.stream:
            await asyncio.gather(*(self._stream(send, index) for index in range(len(self._generations))))
            last = self._reply.chunk([], self._usage()) if self._chat.include_usage else b""
            await send({"type": "http.response.body", "body": last + replies.DONE})
        else:
            choices = await asyncio.gather(*(self._choice(index) for index in range(len(self._generations))))
            await send_whole(send, 200, self._reply.whole(list(choices), self._usage()))

    async def fail(self, send: Send, error: ApiError) -> None:
        """Send the error to the client; a stream that has begun ends with it."""
        if self._begun:
            await send({"type": "http.response.body", "body": replies.event(error.body)})
        else:
            await send_error(send, error)

    def abandon(self) -> None:
        """Free the rows of what is still being generated."""
        for generation in self._generations:
            generation.cancel()

    @property
    def first_token_at(self) -> float | None:
        """``time.monotonic`` of the first token of any choice, if there was one."""
        return min((g.first_token_at for g in self._generations if g.first_token_at is not None), default=None)

    def _usage(self) -> dict[str, int]:
        return replies.usage(self._asked.prompt_tokens, sum(self._used))

    async def _choice(self, index: int) -> dict[str, Any]:
        deltas: list[Delta] = []
        entries: list[dict[str, Any]] = []
        async for tokens, read in self._turn(index):
            deltas += read
            entries += self._entries(tokens) or []
        calls = sum(delta.call is not None for delta in deltas)
        logprobs = entries if self._chat.logprobs else None
        return replies.choice(index, deltas, await self._reason(index, calls), logprobs)

    async def _stream(self, send: Send, index: int) -> None:
        calls = 0
        pending: list[Token] = []  # their log-probs go with the next chunk
        first = True
        async for tokens, deltas in self._turn(index):
            pending += tokens
            bodies = replies.merged(deltas, calls)
            calls += sum(delta.call is not None for delta in deltas)
            if first:
                bodies.insert(0, {"role": "assistant", "content": ""})
                first = False
            if bodies:
                chunks = [replies.chunk_choice(index, body) for body in bodies]
                chunks[-1] = replies.chunk_choice(index, bodies[-1], logprobs=self._entries(pending))
                pending = []
                await self._write(send, b"".join(self._reply.chunk([chunk]) for chunk in chunks))
        reason = await self._reason(index, calls)
        last = replies.chunk_choice(index, {}, reason, self._entries(pending) if pending else None)
        await self._write(send, self._reply.chunk([last]))

    async def _turn(self, index: int) -> AsyncIterator[tuple[list[Token], list[Delta]]]:
        """New tokens of a choice, and the part of its answer that is certain with them."""
        chat, generation = self._chat, self._generations[index]
        reader = TurnReader(self._tokenizer, chat.thinking, chat.offers_tools, self._asked.calls, chat.stops)
        async for batch in generation.batches() if chat.stream or chat.stops else _at_once(generation):
            deltas: list[Delta] = []
            for count, token in enumerate(batch, 1):
                deltas += reader.feed(token.id)
                if reader.stopped:
                    generation.cancel()
                    self._stopped[index] = True
                    self._used[index] += count
                    yield batch[:count], deltas
                    return
            self._used[index] += len(batch)
            yield batch, deltas
        yield [], list(reader.finish())

    async def _reason(self, index: int, calls: int) -> str:
        ended_by = "stop" if self._stopped[index] else await self._generations[index].wait()
        return replies.finish_reason(ended_by, calls)

    def _entries(self, tokens: list[Token]) -> list[dict[str, Any]] | None:
        return replies.logprob_entries(tokens, self._tokenizer) if self._chat.logprobs else None

    async def _write(self, send: Send, events: bytes) -> None:
        async with self._writing:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": [
                    (b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
                ]})  # fmt: skip
            await send({"type": "http.response.body", "body": events, "more_body": True})


async def _at_once(generation: Generation) -> AsyncIterator[list[Token]]:
    """All tokens when the last has come, read in parts that do not hold up other requests."""
    await generation.wait()
    for start in range(0, len(generation.tokens), AT_ONCE):
        yield generation.tokens[start : start + AT_ONCE]
        await asyncio.sleep(0)


async def send_whole(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    told = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    told += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    await send_whole(send, error.status, strict_json.write(error.body).encode(), error.headers)
