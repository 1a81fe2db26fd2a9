"""What /metrics shows, in Prometheus' text format."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Times that a user notices, from a tiny model's milliseconds to minutes for a long prompt.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """Counters since the start; a registry of its own, so that one process can hold several servers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry, "namespace": "moonflow"}
        self._requests = Counter("requests", "Chat completion requests by HTTP status; 499: the client left.",
                                 ["status"], **common)  # fmt: skip
        self.in_flight = Gauge("requests_in_flight", "Chat completion requests not yet answered.", **common)
        self._prompt_tokens = Counter("prompt_tokens", "Tokens read.", **common)
        self._completion_tokens = Counter("completion_tokens", "Tokens generated.", **common)
        self._first_token = Histogram("time_to_first_token_seconds", "From a request's arrival to its first token.",
                                      buckets=SECONDS, **common)  # fmt: skip
        self._duration = Histogram("request_seconds", "From a request's arrival to the end of its answer.",
                                   buckets=SECONDS, **common)  # fmt: skip
        self._waiting = Gauge("queue_length", "Sequences that wait for a row of the batch.", **common)
        self._running = Gauge("batch_rows", "Sequences in the batch.", **common)
        self._rate = Rate()
        Gauge("tokens_per_second", f"Tokens generated per second over the last {Rate.WINDOW:g} seconds.",
              **common).set_function(self._rate.value)  # fmt: skip

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Set the functions that give the queue's and the batch's lengths."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)

    def prompted(self, tokens: int) -> None:
        self._prompt_tokens.inc(tokens)

    def generated(self, tokens: int) -> None:
        self._completion_tokens.inc(tokens)
        self._rate.add(tokens)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def answered(self, status: int, seconds: float) -> None:
        self._requests.labels(status).inc()
        self._duration.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Rate:
    """A count per second over a sliding window of WINDOW seconds."""

    WINDOW = 10.0

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        now = time.monotonic()
        self._counts.append((now, count))
        self._forget(now)

    def value(self) -> float:
        self._forget(time.monotonic())
        return sum(count for _, count in self._counts) / self.WINDOW

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - self.WINDOW:
            self._counts.popleft()
