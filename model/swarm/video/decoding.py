"""Parts of videos, read by confined processes (`model.swarm.video.decoder_server`); what they say is checked here
(source: ours)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown

ROOT = Path(__file__).resolve().parents[3]
CPU_S = 60.0  # processor seconds for one part (ours); a minute of 1080p takes about 10
MEMORY_MB = 2048  # of one part, beyond the file (ours); the index of a day's video takes several hundred
MAX_ANSWER = 64 << 20  # bytes of one answer
# Of one answer: a frame of noise has 1.04 bytes of JPEG in base64 for each pixel, headers and brightness come besides.
PIXEL_BYTES, FRAME_BYTES, OTHER_BYTES = 1.2, 1_000, 1 << 20
MAX_FILE_S = 30 * 86_400.0  # a longer video is read up to there
WHY = {signal.SIGXCPU: "its decoding takes over {cpu_s:g} processor seconds", signal.SIGKILL: "its decoder was killed"}
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Curve = Annotated[list[tuple[Seconds, Share]], Field(max_length=1000)]


class Undecodable(MoonflowError):
    """A file or a part that cannot be read; the message says why, not which."""


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


class Header(_Told):
    """What is known of a file: seconds until its last frame ends, pixels, whether it is longer than could be found."""

    seconds: Seconds
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    cut: bool


class Frame(_Told):
    """A frame as a JPEG in base64; ``seconds`` since the file's first frame."""

    seconds: Seconds
    jpeg: str = Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=8 << 20)


class Clip(_Told):
    """What is seen in a part.

    Attributes:
        frames: those that say most. cuts: seconds at which scenes begin.
        brightness, motion: (seconds, value from 0 to 1); motion is the mean difference from the frame before.
        note: what could not be read of it; "" if all was.
        still: no new frame comes in it: the one before is shown on.
    """

    frames: list[Frame] = Field(max_length=1000)
    cuts: list[Seconds] = Field(max_length=1000)
    brightness: Curve
    motion: Curve
    note: str = Field(max_length=300)
    still: bool


Answer = TypeVar("Answer", bound=_Told)


def check_frames(frames: int, size: int) -> None:
    """Raises MoonflowError if so many frames of ``size`` x ``size`` pixels may be more than a decoder can answer."""
    room = MAX_ANSWER - OTHER_BYTES
    if frames * (FRAME_BYTES + PIXEL_BYTES * size**2) > room:
        fewer = int(room / (FRAME_BYTES + PIXEL_BYTES * size**2))
        smaller = int(math.sqrt((room / frames - FRAME_BYTES) / PIXEL_BYTES))
        raise MoonflowError(
            f"--frames {frames} of --frame-size {size} are more than a decoder can answer with: give --frames {fewer} "
            f"or --frame-size {smaller}, or less"
        )


class Decoder:
    """Reads videos in other processes. Use it as an async context manager; its end ends all of them.

    Args:
        at_once: most parts that are decoded at the same time. Default: one for each core.

    Attributes:
        free: held while a part is decoded; who measures that takes it first, and then asks for the part.
        unfiltered: why decoders have no seccomp filter; "" if they have one, or none has ended yet.
    """

    def __init__(self, at_once: int | None = None, cpu_s: float = CPU_S, memory_mb: int = MEMORY_MB) -> None:
        self.free = asyncio.Semaphore(at_once or os.cpu_count() or 1)
        self._cpu_s, self._memory_mb = cpu_s, memory_mb
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._numbers = count()
        self.unfiltered = ""

    async def __aenter__(self) -> Decoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop()

    async def header(self, path: Path) -> Header:
        """Raises Undecodable."""
        async with self.free:
            return await self._ask(path, None, 1, 16, Header)

    async def clip(self, path: Path, start: float, end: float, frames: int, size: int) -> Clip:
        """At most ``frames`` frames of [start, end), whose longer side has at most ``size`` pixels; hold ``free``.

        Raises Undecodable.
        """
        return await self._ask(path, (start, end), frames, size, Clip)

    async def _ask(
        self, path: Path, part: tuple[float, float] | None, frames: int, size: int, kind: type[Answer]
    ) -> Answer:
        asked = {
            "path": str(path.absolute()), "part": part, "frames": frames, "size": size, "number": next(self._numbers),
            "cpu_s": self._cpu_s, "memory_mb": self._memory_mb,
        }  # fmt: skip
        said = await self._said(json.dumps(asked).encode())
        answer, _, status = said.rpartition(b"\n")
        try:
            ended, self.unfiltered = json.loads(status)
            if ended != 0:
                raise Undecodable(self._why(ended))
            told = json.loads(answer)
            if isinstance(told, dict) and isinstance(told.get("error"), str):
                raise Undecodable(shown(told["error"], 300))
            return kind.model_validate(told)
        except (ValueError, RecursionError) as error:
            what = "too much or nothing" if not isinstance(error, ValidationError) else "what is no part of a video"
            raise Undecodable(f"its decoder says {what}") from None

    def _why(self, ended: object) -> str:
        if ended == "late":
            return "its decoding does not end"
        if not isinstance(ended, int) or ended >= 0 or -ended not in signal.valid_signals():
            return "its decoder failed"
        number = signal.Signals(-ended)
        return WHY.get(number, f"its decoder died ({number.name})").format(cpu_s=self._cpu_s)

    async def _said(self, question: bytes) -> bytes:
        """All that comes through a question's pipe, at most about MAX_ANSWER bytes."""
        ours, theirs = os.pipe()
        reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
        )
        try:
            try:
                socket.send_fds(self._connected(), [question], [theirs])
            except OSError:  # it died: start another one
                self._stop()
                socket.send_fds(self._connected(), [question], [theirs])
            finally:
                os.close(theirs)
            said = bytearray()
            while len(said) <= MAX_ANSWER and (more := await reader.read(1 << 18)):
                said += more
            return bytes(said)
        except OSError as error:
            raise Undecodable(f"its decoder did not start ({error.strerror})") from None
        finally:
            transport.close()

    def _connected(self) -> socket.socket:
        if self._server is None or self._server.poll() is not None:
            self._stop()
            # The server gets nothing else of our environment, least of all credentials.
            environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, "-s", "-P", "-m", "model.swarm.video.decoder_server", str(os.getpid())],
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=environment, cwd="/", start_new_session=True,
                )  # fmt: skip
        assert self._channel is not None
        return self._channel

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._server is not None:
            self._server.kill()  # its children die with it
            self._server.wait()
        self._server = self._channel = None
