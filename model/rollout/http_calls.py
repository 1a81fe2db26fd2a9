"""Calls to an engine's HTTP API: JSON in and out, bounded retries, errors of one line (source: ours)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from model.boundary.errors import MoonflowError, Transient
from model.rollout.keys import ENGINE_KEY, key_in

DENIED = {401, 403}
RETRIED = {408, 425, 429, 500, 502, 503, 504}
ATTEMPTS = 4
BACKOFF_S = 0.5
TIMEOUT_S = 600.0


class Refused(MoonflowError):
    """The engine answered with an error that another attempt would not change.

    Attributes:
        status: of the HTTP response; 200 if the answer is no JSON object.
        answer: its text, without the key, which some servers repeat.
    """

    def __init__(self, message: str, status: int, answer: str) -> None:
        super().__init__(message)
        self.status, self.answer = status, answer


class HttpCalls:
    """Calls to one engine.

    Args:
        engine: what errors call it, e.g. "SGLang".
        url: base URL, e.g. ``http://rollout:30000``.
        attempts: how often a call is tried if the host is unreachable, overloaded or failing (5xx).
        backoff_s: seconds before the second attempt; doubled for each further one.
        timeout_s: seconds that one attempt may take.
        key: the environment variable with its key, which is sent as a bearer token.
    """

    def __init__(
        self,
        engine: str,
        url: str,
        attempts: int = ATTEMPTS,
        backoff_s: float = BACKOFF_S,
        timeout_s: float = TIMEOUT_S,
        key: str = ENGINE_KEY,
    ) -> None:
        """MoonflowError: no HTTP header can hold the key."""
        self.name = f"{engine} at {url.rstrip('/')}"
        self.backoff_s = backoff_s
        self._url = url.rstrip("/")
        self._attempts = attempts
        self._timeout = httpx.Timeout(timeout_s, connect=10.0)
        self._tls = httpx.create_ssl_context()  # once: it reads all certificates, which takes as long as many answers
        self._variable, self._key = key, key_in(key)

    def client(self) -> httpx.AsyncClient:
        """A client for a few calls, to be used as a context manager."""
        unlimited = httpx.Limits(max_connections=None)  # the engine does the queueing
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(
            base_url=self._url, timeout=self._timeout, limits=unlimited, headers=headers, verify=self._tls
        )

    def _text(self, response: httpx.Response) -> str:
        """An answer without the key."""
        return response.text.replace(self._key, f"<{self._variable}>") if self._key else response.text

    def _shown(self, response: httpx.Response, characters: int) -> str:
        """The start of an answer on one line, without the key."""
        return " ".join(self._text(response)[:characters].split())

    async def call(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that the engine answers: to a POST of ``body``, without one to a GET.

        Raises:
            Transient: the engine is unreachable.
            Refused: it answered with an error, or not with a JSON object.
            MoonflowError: it was overloaded or failed each time.
        """
        failure, reached = "", False
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                response = await (client.get(path) if body is None else client.post(path, json=body))
            except httpx.TransportError as error:
                failure = f"{type(error).__name__} {error}".strip()
                # Any other failure may be due to this request, so it is not called unreachable.
                reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                continue
            reached = True
            if response.status_code in RETRIED:
                failure = f"HTTP {response.status_code} {self._shown(response, 200)}"
                continue
            try:
                answer = response.json()
            except ValueError:
                answer = None
            if response.status_code >= 400 or not isinstance(answer, dict):
                told = f"answered HTTP {response.status_code}: {self._shown(response, 300)}"
                if response.status_code in DENIED:
                    found = "has another key" if self._key else "is not set"
                    told += f"; {self._variable} {found}: set it to the server's key"
                raise Refused(f"{self.name}{path} {told}", response.status_code, self._text(response))
            return answer
        tried = f"failed {self._attempts} times, last: {' '.join(failure.split())}"
        raise (MoonflowError if reached else Transient)(f"{self.name}{path} {tried}; is it running?")
