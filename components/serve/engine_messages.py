"""The messages between the server and its engine process: pickled, each after its length, over a socket pair that only
the two of them hold. Nothing from outside is ever unpickled.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from model.rollout.protocol import Request

FinishReason = Literal["stop", "length", "abort"]
_LENGTH = struct.Struct("!Q")


class Begin(NamedTuple):
    """To the engine: numbered requests, to be queued at once, so that equal prompts are read once."""

    requests: list[tuple[int, Request]]


class Cancel(NamedTuple):
    """To the engine: free the row of a request."""

    number: int


class LoadResult(NamedTuple):
    """From the engine: it is ready for requests, or why the checkpoint could not be loaded."""

    failure: str


class Step(NamedTuple):
    """From the engine, once per decode step."""

    tokens: list[tuple[int, int, float]]  # request number, sampled token, its log-prob in nats
    ended: dict[int, FinishReason]  # by request number; its last token is in ``tokens``
    failed: dict[int, str]  # by request number: why


Message = Begin | Cancel | LoadResult | Step


def encode(message: Message) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


class MessageReader:
    """Makes messages from the bytes of a stream."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that ``data`` completes."""
        self._pending += data
        while len(self._pending) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._pending)[0]
            if len(self._pending) < end:
                return
            content = bytes(self._pending[_LENGTH.size : end])
            del self._pending[:end]
            yield pickle.loads(content)  # from the other end, which is this program
