"""Whether a server is away, judged by requests of which several are under way at the same time (source: ours)."""

from __future__ import annotations

import math

AWAY = 3  # failures, one after the other, after which a server is away (ours)


class Outage:
    """Counts failures of which each request began after the failure before it.

    All requests that are under way when a server goes away fail together, and count as one.
    """

    def __init__(self) -> None:
        self._failures, self._last = 0, -math.inf

    def answered(self) -> None:
        """A request was answered."""
        self._failures = 0

    def failed(self, began: float, ended: float) -> bool:
        """A request reached nobody, or was not answered in time; seconds of one clock. Whether the server is away."""
        if began >= self._last:
            self._failures, self._last = self._failures + 1, ended
        return self._failures >= AWAY
