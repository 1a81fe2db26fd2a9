"""Ending on request (SIGTERM): at once, or in training at the end of a step, which is then saved (source: ours)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(SystemExit):
    """The process was asked to end. It exits with status 143, as after an unhandled SIGTERM."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _State:
    """Global, because a signal is sent to the whole process."""

    waits = False
    asked = False


def request() -> None:
    """Ask the process to end: raises Terminated, except inside ``at_step_ends``."""
    if not _State.waits:
        raise Terminated
    _State.asked = True


def asked() -> bool:
    """Whether ``request`` was called inside the present ``at_step_ends``."""
    return _State.asked


@contextmanager
def at_step_ends() -> Iterator[None]:
    """Inside, a request only sets ``asked``, because half a step cannot be saved; check ``asked`` after each step."""
    _State.waits, _State.asked = True, False
    try:
        yield
    finally:
        _State.waits = _State.asked = False
