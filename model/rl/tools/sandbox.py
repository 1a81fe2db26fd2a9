"""IPython-style programs of a policy, run out of process. What confines them: `walls`. Who runs them: `sandbox_server`.

A session's process is taken to be hostile: what it answers is bounded text, one answer a question, or the session is
dead. Why a session died is asked of the server.
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

from model.errors import MoonflowError
from model.rl.tools.sandbox_server import HEAD, QUESTION_BYTES, START_S, image_question
from model.rl.tools.walls import Walls

ROOT = Path(__file__).resolve().parents[3]
SUFFIX_CHARS = 64  # room for what follows a cut output: "... [n more characters]"
_REASON_S = 5.0  # for the server to reap a process and say why it ended (ours)
_STOP_S = 10.0  # for the server to end by itself (ours)
_RETRY_S = 0.02  # after a session that found no room
# What a process, a user or a machine has too few of, until another session ends.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Limits:
    """Of one session (values: ours).

    Attributes:
        cell_cpu_s: processor seconds of a cell, after which it gets a TimeoutError, or the session is killed where that
            does not end the cell (`cells.run_cell`). Not wall-clock seconds: what an episode observes must not depend
            on how busy the machine is.
        session_cpu_s: processor seconds of all cells together, after which the session is killed.
        wall_s: seconds of a cell, after which the session is killed; only for what blocks without computing.
        memory_mb: MiB above what the idle session has.
        output_chars: characters of a cell's output that are kept.
    """

    cell_cpu_s: float = 1.0
    session_cpu_s: float = 4.0
    wall_s: float = 60.0
    memory_mb: int = 256
    output_chars: int = 400


class _Dead(Exception):
    """The session answers no more; its text says why."""


class Session:
    """One kernel: names persist from cell to cell. Made by `Sandbox.session`; use as an async context manager.

    A session that cannot be had, or that dies, answers every cell with one line that says why.

    Attributes:
        refusal: why it could not be had, which is not the program's fault; "" if it was.
    """

    def __init__(self, channel: socket.socket, limits: Limits, array: np.ndarray | None) -> None:
        self._channel, self._limits, self._array = channel, limits, array
        self._sockets: tuple[socket.socket, socket.socket] | None = None  # data, control
        self._why = "the session was not entered"
        self.refusal = ""

    async def __aenter__(self) -> Session:
        try:
            async with asyncio.timeout(START_S):
                await self._connect()
                await self._ask(image_question(self._array))
        except TimeoutError:
            self._hang_up(
                f"no session in {START_S:.0f} s: {self._why}, or the machine is overloaded; run fewer at once"
            )
            self.refusal = self._why
        except _Dead as dead:
            self._hang_up(f"no session: {dead}")
            self.refusal = self._why
        except BaseException:
            self._hang_up("it was given up")
            raise
        self._array = None
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up("it was left")

    async def run(self, code: str) -> str:
        """What the cell printed and the value of its last expression, or the last line of its traceback."""
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
            self._hang_up("the session is dead")  # its answer would be taken for the next cell's
            raise

    async def _connect(self) -> None:
        """Give the server two sockets; wait while there is no room for them."""
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
            # The mark is new with each question, so that an answer cannot be written before it.
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
            piece = await asyncio.get_running_loop().sock_recv(self._sockets[0], size - len(parts))
            if not piece:
                raise EOFError
            parts += piece
        return bytes(parts)

    async def _reason(self) -> str:
        """The server's word on why the session's process ended."""
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
        """The server kills the session's process as soon as the connection is closed."""
        for each in self._sockets or ():
            _end(each)
        self._sockets, self._why = None, why


def _end(connection: socket.socket) -> None:
    """Close a connection, also where a fork of this process has a copy of its descriptor."""
    with suppress(OSError):  # its other end may be gone
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _hand_over(channel: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Ask the server for a session: (data, control), whose other ends it now has."""
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
    """The server process; started at the first session, ended by `close` or with this process.

    ``mode``: "unsafe" runs programs within what walls the machine has; any other, as "strict", runs none without a
    seccomp filter.
    """

    module = "model.rl.tools.sandbox_server"

    def __init__(self, limits: Limits | None = None, mode: str = "strict") -> None:
        self.limits, self.mode = limits or Limits(), mode
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._walls: Walls | None = None
        self._lock = threading.Lock()

    def session(self, array: np.ndarray | None = None) -> Session:
        """A new kernel in which ``img`` is ``array`` (uint8 [H, W]). Raises MoonflowError if no server starts."""
        return Session(self._running(), self.limits, array)

    @property
    def walls(self) -> Walls:
        """What confines programs here. Raises MoonflowError if no server starts."""
        self._running()
        assert self._walls is not None
        return self._walls

    def close(self) -> None:
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
        # Nothing of ours, credentials least of all.
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-s", "-P", "-m", self.module, json.dumps(asdict(self.limits)), self.mode]
        try:
            # Messages, each whole: several threads may ask for sessions.
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
                f"no program is run, because this machine cannot confine it: {told['refused']}; mend that, or set "
                'sandbox = "unsafe" in the step\'s table to run programs without this wall'
            )
        self._walls = Walls(**told["walls"])

    def _stop(self) -> None:
        if self._channel is not None:
            _end(self._channel)  # the server ends with it, and every session with the server
            self._channel = None
        if self._server is not None:
            try:
                self._server.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
