"""A served model behind a URL: which API it has is found by asking it (source: ours)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.rollout.chat_engine import ChatEngine
from model.rollout.http_calls import ATTEMPTS, BACKOFF_S, DENIED, HttpCalls, Refused
from model.rollout.keys import ENGINE_KEY
from model.rollout.protocol import Completion, Request, RolloutEngine
from model.rollout.sglang import SGLangEngine

ASK_S = 30.0  # an answer about the server itself takes no longer
AT_ONCE = 64  # requests under way: an engine's batch, and far fewer than the connections a process may have (ours)
SGLANG_INFO = ("/get_model_info", "/model_info")  # old and new name (source: SGLang 0.5.23 http_server.py)
MODELS = "/v1/models"


@dataclass(frozen=True)
class Endpoint:
    """A server that answers.

    Attributes:
        url: its base, without ``/v1``.
        api: "sglang" takes token ids, "chat" messages.
        model: its name for the model that it serves.
        context: tokens of prompt and answer together; None if it does not say.
        key: the environment variable with its key.
    """

    url: str
    api: Literal["sglang", "chat"]
    model: str
    context: int | None
    key: str = ENGINE_KEY

    def __str__(self) -> str:
        how = "SGLang, by token ids" if self.api == "sglang" else "OpenAI-compatible, by messages"
        return f"{self.url} ({how}), model {self.model}"

    def engine(
        self, tokenizer: Tokenizer, image_config: ImageConfig, attempts: int = ATTEMPTS, backoff_s: float = BACKOFF_S
    ) -> RolloutEngine:
        """What generates there, with the tokenizer and image preparation of the served checkpoint."""
        if self.api == "sglang":
            pad = tokenizer.media_pad_id
            engine: RolloutEngine = SGLangEngine(self.url, pad, image_config, attempts, backoff_s, key=self.key)
        else:
            engine = ChatEngine(self.url, self.model, tokenizer, image_config, attempts, backoff_s, key=self.key)
        return AtMost(engine, AT_ONCE)


class AtMost:
    """A ``RolloutEngine`` that has at most ``count`` calls of another one under way; more of them wait."""

    def __init__(self, engine: RolloutEngine, count: int) -> None:
        self._engine = engine
        self._free = asyncio.Semaphore(count)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        async with self._free:
            return await self._engine.generate(requests)

    async def update_weights(self, checkpoint: Path) -> None:
        await self._engine.update_weights(checkpoint)


async def find_endpoint(
    url: str, attempts: int = ATTEMPTS, backoff_s: float = BACKOFF_S, key: str = ENGINE_KEY
) -> Endpoint:
    """Ask the server at ``url`` what it is; ``/v1`` at its end makes no difference.

    Args:
        attempts, backoff_s, key: of calls, see ``model.rollout.http_calls``.

    Raises:
        Transient: nothing answers there.
        MoonflowError: the URL is none, or what answers is neither SGLang nor OpenAI-compatible.
    """
    base = server_url(url, f"set {key} to the key that it wants").removesuffix("/v1").rstrip("/")
    calls = HttpCalls("the server", base, attempts, backoff_s, ASK_S, key)
    async with calls.client() as client:
        info: dict[str, Any] = {}
        for path in SGLANG_INFO:
            info = info or await _answer(calls, client, path)
        models = await _answer(calls, client, MODELS)
    served = models.get("data")
    first = served[0] if isinstance(served, list) and served and isinstance(served[0], dict) else {}
    context = first.get("max_model_len")
    context = context if isinstance(context, int) and context > 0 else None
    if isinstance(info.get("model_path"), str):
        return Endpoint(base, "sglang", info["model_path"], context, key)
    if not isinstance(first.get("id"), str):
        raise MoonflowError(
            f"{base} answers neither {SGLANG_INFO[0]} as SGLang does nor {MODELS} with a model: give the base URL of "
            "an SGLang or OpenAI-compatible server, for example http://127.0.0.1:30000"
        )
    return Endpoint(base, "chat", first["id"], context, key)


def server_url(url: str, key: str) -> str:
    """A server's URL without blanks or a slash at its end.

    Args:
        key: what the caller should do with the server's key, after "leave user and password out, and".

    Raises:
        MoonflowError: it is no URL of a server, or has a user.
    """
    if "@" in url:
        raise MoonflowError(f"the server's URL has an @: leave user and password out, and {key}")
    try:
        parsed = httpx.URL(url.strip())
        usable = parsed.scheme in ("http", "https") and parsed.host != "" and not parsed.query and not parsed.fragment
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise MoonflowError(f"{shown(url)} is not the URL of a server: give one such as http://127.0.0.1:30000")
    return url.strip().rstrip("/")


async def _answer(calls: HttpCalls, client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """What the server answers; empty if it does not know the path."""
    try:
        return await calls.call(client, path)
    except Refused as refused:
        if refused.status in DENIED:
            raise
        return {}
