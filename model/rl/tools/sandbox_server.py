"""The server side of the sandbox: a process that `sandbox.Sandbox` starts, and that forks one process per session.

It imports numpy and little else, so a session starts in milliseconds with the libraries loaded, and it never sees
a session's data: nothing of one session is in the memory of another.

Its standard input is the channel to the client. A message there asks for a session and brings two sockets:

- ``data``, for the session's process alone. A question is its sender's 8 random bytes, a 4-byte big-endian length, and
  so many bytes; the answer repeats the 8 bytes, then length and UTF-8 text. The first question holds ``img`` (or
  nothing), each further one is a cell.
- ``control``, kept by the server. The client closes it to end the session. When the session's process has ended,
  the server writes there in one line why; a session's own word is not taken for it.

Everything ends when the channel does, or the client's process.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.rl.tools import cells
from model.rl.tools.walls import Confinement, die_with, hide, isolate

HEAD = struct.Struct(">8sI")  # of a question and of an answer
QUESTION_BYTES = 64 << 20  # of a program or an array (ours)
SESSIONS = 256  # at once; further ones wait (ours)
START_S = 60.0  # for a session to begin: on an overloaded machine, or after others have ended (ours)
_RETRY_S = 0.1  # after a fork that the machine refused
_OUT_OF_MEMORY, _UNCONFINED = 3, 64  # exit statuses of a session's process; the last one plus an errno
Runner = Callable[[str, dict[str, Any]], str]


def _exactly(size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (piece := os.read(0, size - len(parts))):
        parts += piece
    return bytes(parts)


def _question() -> tuple[bytes, bytes] | None:
    """The next (mark, body), or None when the client is gone."""
    head = _exactly(HEAD.size)
    if len(head) < HEAD.size:
        return None
    mark, size = HEAD.unpack(head)
    body = _exactly(size)
    return (mark, body) if len(body) == size else None


def _answer(mark: bytes, text: str) -> None:
    body = text.encode(errors="replace")  # a lone surrogate is no text
    frame = memoryview(HEAD.pack(mark, len(body)) + body)
    while frame:
        frame = frame[os.write(0, frame) :]


def image_question(array: np.ndarray | None) -> bytes:
    """The body of a session's first question: a line of JSON, then the array's bytes (uint8)."""
    if array is None:
        return b""
    return json.dumps(array.shape).encode() + b"\n" + np.ascontiguousarray(array, np.uint8).tobytes()


def _image(body: bytes) -> np.ndarray | None:
    if not body:
        return None
    shape, _, data = body.partition(b"\n")
    return np.frombuffer(data, np.uint8).reshape(json.loads(shape)).copy()


def _session(runner: Runner) -> None:
    """A kernel on descriptor 0: names persist from cell to cell until the client is gone."""
    names = cells.namespace()
    if (first := _question()) is None:
        return
    mark, body = first
    if (array := _image(body)) is not None:
        names["img"] = array
    _answer(mark, "")
    while (question := _question()) is not None:
        mark, body = question
        _answer(mark, runner(body.decode(errors="replace"), names))


@dataclass(frozen=True)
class _Running:
    """A session's process, and what to watch of it."""

    pid: int
    ended: int
    control: socket.socket


class Server:
    def __init__(self, limits: dict[str, Any], confinement: Confinement, runner: Runner) -> None:
        self._limits, self._confinement, self._runner = limits, confinement, runner
        self._started = 0

    def fork(self, data: socket.socket) -> int:
        """The process of a new session. OSError if the machine has none left."""
        self._started += 1
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            cells.interrupt_cells()  # no handler can be set behind the walls
            limits = {name: self._limits[name] for name in ("memory_mb", "session_cpu_s")}
            try:
                self._confinement.enter(data.fileno(), number=self._started, **limits)
            except OSError as error:
                status = _UNCONFINED + (error.errno or 0)
                return 0  # not reached: it exits
            _session(self._runner)
            status = 0
        except MemoryError:
            status = _OUT_OF_MEMORY
        finally:
            os._exit(status)

    def why(self, status: int, used: resource.struct_rusage) -> str:
        """Why a process ended, from what the kernel says of it."""
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU or (
            code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= self._limits["session_cpu_s"]
        ):
            return "out of processor time"
        if code == -signal.SIGSYS:
            return "a forbidden system call"
        if code == -signal.SIGKILL:
            return "killed by the system, as it does for want of memory"
        if code < 0:
            return f"crashed: {signal.strsignal(-code)}"
        if code >= _UNCONFINED:
            return f"it could not be confined: {os.strerror(code - _UNCONFINED)}"
        return "out of memory" if code == _OUT_OF_MEMORY else "its process ended itself"

    def serve(self, channel: socket.socket, parent: int) -> None:
        """Start sessions until the channel or the process ``parent`` (a pidfd) ends; end each whose client hung up."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # A request brings two descriptors, a session keeps two: one to talk, one that tells its end.
        room = min(SESSIONS, (most - 16) // 2)
        running: dict[int, _Running] = {}  # by both descriptors
        waiting: tuple[socket.socket, socket.socket, float] | None = None  # data, control, until when
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(channel, select.POLLIN)
        while True:
            full = waiting is not None or len(running) // 2 >= room
            poll.modify(channel, 0 if full else select.POLLIN)  # its end is told in any case
            for fd, event in poll.poll(1000 * _RETRY_S if waiting else None):
                if fd == parent or (fd == channel.fileno() and event & (select.POLLHUP | select.POLLERR)):
                    for session in set(running.values()):
                        os.kill(session.pid, signal.SIGKILL)
                    return
                if fd == channel.fileno():
                    _, sockets, _, _ = socket.recv_fds(channel, 1, 2)
                    if len(sockets) == 2:
                        data, control = (socket.socket(fileno=each) for each in sockets)
                        waiting = data, control, time.monotonic() + START_S
                    else:  # the machine had no descriptors for them, and the client finds its sockets closed
                        for each in sockets:
                            os.close(each)
                elif fd in running:
                    self._end(running, fd, poll)
            if waiting is not None:
                waiting = self._begin(*waiting, running, poll)

    def _begin(
        self,
        data: socket.socket,
        control: socket.socket,
        until: float,
        running: dict[int, _Running],
        poll: select.poll,
    ) -> tuple[socket.socket, socket.socket, float] | None:
        """Start what waits; it waits on if the machine refuses."""
        refused = ""
        try:
            pid = self.fork(data)
        except OSError as error:
            if time.monotonic() < until:
                return data, control, until
            refused = f"no process for it in {START_S:.0f} s: {error.strerror}"
        data.close()
        if refused:
            _tell(control, refused)
            control.close()
            return None
        try:
            session = _Running(pid, os.pidfd_open(pid), control)
        except OSError as error:  # it could not be watched; the others go on
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _tell(control, f"it cannot be watched: {error.strerror}")
            control.close()
            return None
        running[session.ended] = running[control.fileno()] = session
        poll.register(control, select.POLLRDHUP)
        poll.register(session.ended, select.POLLIN)
        return None

    def _end(self, running: dict[int, _Running], fd: int, poll: select.poll) -> None:
        """The client hung up, or the process ended: reap it and say why."""
        session = running[fd]
        os.kill(session.pid, signal.SIGKILL)  # not yet reaped, so the number is still this child's
        _, status, used = os.wait4(session.pid, 0)
        _tell(session.control, self.why(status, used))
        for watched in (session.ended, session.control.fileno()):
            poll.unregister(watched)
            del running[watched]
        os.close(session.ended)
        session.control.close()


def _tell(control: socket.socket, why: str) -> None:
    with suppress(OSError):  # the client may be gone
        control.send(why.encode(), socket.MSG_DONTWAIT)


def _trial(server: Server) -> str:
    """Why no session can be had here, or ""."""
    ours, theirs = socket.socketpair()
    pid = server.fork(theirs)
    theirs.close()
    ours.settimeout(START_S)
    question, said = HEAD.pack(bytes(8), 0), b""
    with ours, suppress(OSError):
        ours.sendall(question)
        said = ours.recv(len(question))
    _, status, used = os.wait4(pid, 0)  # it ends with the connection
    return "" if said == question else server.why(status, used)


def main(runner: Runner | None = None) -> None:
    """``LIMITS_JSON strict|unsafe CLIENT_PID``; ``runner`` stands in for that of cells where the walls are measured."""
    limits, mode, client = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client's to heed
    parent = os.pidfd_open(client)
    if os.getppid() != client:
        return
    np.set_printoptions(legacy="1.25")  # a NumPy 7 shows as 7: `np.int64(7)` would cost a policy ten tokens
    namespaces = isolate()
    if namespaces:  # the first child is process 1 of the namespace: when it ends, the kernel kills every session
        if server := os.fork():
            hide()
            os.waitpid(server, 0)
            return
        die_with(0)
    hide()

    def run(code: str, names: dict[str, Any]) -> str:
        return cells.run_cell(code, names, cpu_s=limits["cell_cpu_s"], output_chars=limits["output_chars"])

    confinement = Confinement(namespaces)
    sessions = Server(limits, confinement, runner or run)
    refused = confinement.walls.seccomp or _trial(sessions)
    if refused and mode == "unsafe":
        confinement.without_filter(refused)
        refused = _trial(sessions)
    os.write(1, json.dumps({"refused": refused, "walls": asdict(confinement.walls)}).encode() + b"\n")
    if not refused:
        sessions.serve(socket.socket(fileno=0), parent)


if __name__ == "__main__":
    main()
