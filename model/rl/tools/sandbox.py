"""The sandbox's client: runs IPython-style programs of a policy in other processes (source: ours).

`sandbox_server` starts these processes, `isolation` confines them, `notebook` runs the cells. A session's process is
assumed to be hostile: each question must get one answer of bounded text, or the session ends. Why a process ended is
learned from the server, never from the process.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from model.boundary.errors import MoonflowError
from model.rl.tools.isolation import Isolation
from model.rl.tools.sandbox_server import HEAD, QUESTION_BYTES, pixels_question

ROOT = Path(__file__).resolve().parents[3]
SUFFIX_CHARS = 64  # room for the end of a cut output: "... [n more characters]"
PLACE_S = 600.0  # in which a session gets a place, where others have them all until their episodes end (ours)
_REASON_S = 5.0  # in which the server reaps a process and says why it ended (ours)
_STOP_S = 10.0  # in which the server ends by itself (ours)
_RETRY_S = 0.02  # pause after a session found no room
# Errors that pass when another session ends: the process, the user or the machine has run out of something.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Limits:
    """Limits of one session (values: ours).

    Attributes:
        cell_cpu_s: processor seconds of a cell. Then it gets a TimeoutError; if that does not end it, the session is
            killed (`notebook.Notebook`). Processor time, because what an episode observes must not depend on how busy
            the machine is.
        session_cpu_s: processor seconds of all cells together; then the session is killed.
        wall_s: seconds of a cell by the clock; then the session is killed. For cells that block without computing.
        memory_mb: MiB beyond what an idle session has.
        output_chars: characters of a cell's output that are kept.
    """

    cell_cpu_s: float = 1.0
    session_cpu_s: float = 4.0
    wall_s: float = 60.0
    memory_mb: int = 256
    output_chars: int = 400


class _Dead(Exception):
    """The session has ended; the message says why."""


class Session:
    """A notebook: names persist from cell to cell. `Sandbox.session` makes one; use it as an async context manager.

    A session that could not be started, or that died, answers every cell with one line that says why.

    Attributes:
        refusal: why it could not be started, which is not the program's fault; "" if it was.
    """

    def __init__(self, channel: socket.socket, limits: Limits, pixels: np.ndarray | None) -> None:
        self._channel, self._limits, self._pixels = channel, limits, pixels
        self._sockets: tuple[socket.socket, socket.socket] | None = None  # data, control
        self._why = "the session was not entered"
        self.refusal = ""

    async def __aenter__(self) -> Session:
        try:
            async with asyncio.timeout(PLACE_S):
                await self._connect()
                await self._ask(pixels_question(self._pixels))
        except TimeoutError:
            self._hang_up(
                f"no session in {PLACE_S:.0f} s: {self._why}, or the machine is overloaded; run fewer at once"
            )
            self.refusal = self._why
        except _Dead as dead:
            self._hang_up(f"no session: {dead}")
            self.refusal = self._why
        except BaseException:
            self._hang_up("it was given up")
            raise
        self._pixels = None
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up("it was left")

    async def run(self, code: str) -> str:
        """Run a cell and return what it shows (`notebook.Notebook.run`)."""
        if self._sockets is None:
            return f"RuntimeError: {self._why}"
        try:
            async with asyncio.timeout(self._limits.wall_s):
                return await self._ask(code.encode(errors="replace"))
        except TimeoutError:
            self._hang_up("the session is dead")
            return "TimeoutError: the cell ran too long, the session is dead"
        except _Dead as dead:
            self._hang_up("the session is dead")
            return f"RuntimeError: {dead}, the session is dead"
        except BaseException:
            self._hang_up("the session is dead")  # or the next cell would get this one's answer
            raise

    async def _connect(self) -> None:
        """Send the server two sockets; wait while there is no room for them."""
        while self._sockets is None:
            try:
                self._sockets = _hand_over(self._channel)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise _Dead(f"the sandbox server is gone ({error.strerror})") from error
                self._why = f"no room ({error.strerror})"
                await asyncio.sleep(_RETRY_S)
        self._why = "the sandbox has all the sessions that it can have"

    async def _ask(self, question: bytes) -> str:
        assert self._sockets is not None
        if len(question) > QUESTION_BYTES:
            raise _Dead(f"{len(question)} bytes are more than the {QUESTION_BYTES} that a session takes")
        data, mark = self._sockets[0], secrets.token_bytes(8)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(data, HEAD.pack(mark, len(question)) + question)
            answered, size = HEAD.unpack(await self._exactly(HEAD.size))
            # Each question has a new mark, so that a process cannot write the answer before the question.
            if answered != mark:
                raise _Dead("it answered what was not asked")
            most = self._limits.output_chars + SUFFIX_CHARS
            if size > 4 * most:  # bytes of UTF-8 per character
                raise _Dead(f"an answer of {size} bytes, more than {4 * most}")
            return (await self._exactly(size)).decode(errors="replace")[:most]
        except (EOFError, ConnectionError):
            raise _Dead(await self._reason()) from None

    async def _exactly(self, size: int) -> bytes:
        assert self._sockets is not None
        parts = bytearray()
        while len(parts) < size:
            received = await asyncio.get_running_loop().sock_recv(self._sockets[0], size - len(parts))
            if not received:
                raise EOFError
            parts += received
        return bytes(parts)

    async def _reason(self) -> str:
        """Why the session's process ended, as the server says."""
        assert self._sockets is not None
        try:
            async with asyncio.timeout(_REASON_S):
                said = await asyncio.get_running_loop().sock_recv(self._sockets[1], 200)
        except TimeoutError:
            return "it hung up"
        except ConnectionError:
            said = b""
        return said.decode(errors="replace") or "the sandbox server ended"

    def _hang_up(self, why: str) -> None:
        """Close the connection, so that the server kills the session's process; ``why`` answers later cells."""
        for each in self._sockets or ():
            _end(each)
        self._sockets, self._why = None, why


def _end(connection: socket.socket) -> None:
    """Close a connection, even if a fork of this process has a copy of its descriptor."""
    with suppress(OSError):  # its other end may be gone
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _hand_over(channel: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Ask the server for a session; returns our ends of the two sockets, data and control."""
    made: list[socket.socket] = []
    try:
        for _ in range(2):
            made += socket.socketpair()
        socket.send_fds(channel, [b"s"], [made[1].fileno(), made[3].fileno()])
    except OSError:
        for each in made:
            each.close()
        raise
    for ours, theirs in (made[:2], made[2:]):
        ours.setblocking(False)
        theirs.close()
    return made[0], made[2]


class Sandbox:
    """The server process. The first session starts it; `close`, or the end of this process, ends it.

    Args:
        limits: of each session.
        mode: "unsafe" runs programs with whatever layers of isolation the machine has; any other mode, such as
            "strict", runs none without a seccomp filter.
    """

    module = "model.rl.tools.sandbox_server"

    def __init__(self, limits: Limits | None = None, mode: str = "strict") -> None:
        self.limits, self.mode = limits or Limits(), mode
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._isolation: Isolation | None = None
        self._lock = threading.Lock()

    def session(self, pixels: np.ndarray | None = None) -> Session:
        """A new session, whose programs find the pixels of a picture or a video, if there are any.

        Args:
            pixels: uint8 [H, W] or [H, W, 3], which is ``img``, and the only one of the list ``images``; or frames
                uint8 [N, H, W, 3], which are the list ``images``.

        Raises:
            MoonflowError: no server starts.
        """
        return Session(self._running(), self.limits, pixels)

    @property
    def isolation(self) -> Isolation:
        """What confines programs on this machine.

        Raises:
            MoonflowError: no server starts.
        """
        self._running()
        assert self._isolation is not None
        return self._isolation

    def close(self) -> None:
        """End the server and all its sessions."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _running(self) -> socket.socket:
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._stop()
                self._start()
            assert self._channel is not None
            return self._channel

    def _start(self) -> None:
        # The server gets nothing else of our environment, least of all credentials.
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONHASHSEED"] = "0"  # sets of texts have the same order in every run
        command = [sys.executable, "-s", "-P", "-m", self.module, json.dumps(asdict(self.limits)), self.mode]
        try:
            # A socket of whole messages, because several threads may ask for sessions.
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.setblocking(False)
            with theirs:
                self._server = subprocess.Popen(
                    [*command, str(os.getpid())],
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    env=environment,
                    cwd="/",
                )
        except OSError as error:
            self._stop()
            raise MoonflowError(f"the sandbox server did not start: {error.strerror}") from error
        assert self._server.stdout is not None
        with self._server.stdout as stdout:
            line = stdout.readline()
        if not line:
            status = self._server.wait()
            self._stop()
            raise MoonflowError(f"the sandbox server did not start (exit status {status}); see its stderr")
        told = json.loads(line)
        if told["refused"]:
            self._stop()
            raise MoonflowError(
                f"no program is run, because this machine cannot confine it: {told['refused']}; fix that, or set "
                'sandbox = "unsafe" in the step\'s table to run programs without the filter'
            )
        self._isolation = Isolation(**told["isolation"])

    def _stop(self) -> None:
        if self._channel is not None:
            _end(self._channel)  # this ends the server, and the server ends every session
            self._channel = None
        if self._server is not None:
            try:
                self._server.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
