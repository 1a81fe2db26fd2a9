"""SIGTERM as an exception, so that the code it interrupts can clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from model.train import stop


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Call ``stop.request`` in the main thread when SIGTERM comes; outside of the main thread do nothing.

    It raises Terminated, unless a training notes the request until its step is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        # Kubernetes and a terminal may both send it again, which must not interrupt the clean-up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.request()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
