"""A process that is asked to end (SIGTERM): at once, or at the end of a training step, with that step saved (ours)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(SystemExit):
    """The process was asked to end. Leaves it with 143, as an unhandled SIGTERM would."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _State:
    """A signal is the whole process's, so this is too."""

    waits = False
    asked = False


def request() -> None:
    """Ask the process to end: raises Terminated, unless the code that runs looks at ``asked`` itself."""
    if not _State.waits:
        raise Terminated
    _State.asked = True


def asked() -> bool:
    """Whether ``request`` was called within the present ``at_step_ends``."""
    return _State.asked


@contextmanager
def at_step_ends() -> Iterator[None]:
    """Within it a request is only noted: half a step cannot be saved. The code looks at ``asked`` after each step."""
    _State.waits, _State.asked = True, False
    try:
        yield
    finally:
        _State.waits = _State.asked = False
