"""How much memory a local run takes: this process and everything that it started, including the services."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

_EVERY_S = 1.0


class PeakMemory:
    """Samples the resident memory of this process and its descendants once a second while the context is open.

    ``bytes`` is the largest sum seen. Pages that processes share count once for each, so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.bytes = max(self.bytes, sum(map(_resident, [me, *me.children(recursive=True)])))
            if self._closed.wait(_EVERY_S):
                return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it ended meanwhile
        return 0
