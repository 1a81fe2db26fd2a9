"""SIGTERM as an exception, so that the code it interrupts can clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(SystemExit):
    """The process was asked to end. Leaves it with 143, as an unhandled SIGTERM would."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM comes; outside of the main thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        # Kubernetes and a terminal may both repeat it: the clean-up must not be interrupted by the same request.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
