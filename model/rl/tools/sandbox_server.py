"""The sandbox's server: a process that `sandbox.Sandbox` starts, and that forks one process per session (source: ours).

It imports what programs may import (`libraries`) and little else, so that a session starts in milliseconds. It never
sees the data of a session, so that nothing of one session is in the memory of another.

Its standard input is the channel to the client. A message there asks for a session and brings two sockets:

- ``data``, for the session's process alone. A question is 8 random bytes, a 4-byte big-endian length, and that many
  bytes; the answer repeats the 8 bytes, then has a length and UTF-8 text. The first question holds the pixels of a
  picture or a video, or nothing; each later one is a cell.
- ``control``, which the server keeps. The client closes it to end the session. When the session's process has ended,
  the server writes one line there that says why; what the process itself says does not count.

When the channel or the client's process ends, everything ends.
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

from model.rl.tools import language, notebook
from model.rl.tools.isolation import Confinement, die_with, enter_namespaces, forbid_tracing

HEAD = struct.Struct(">8sI")  # how a question and an answer begin
QUESTION_BYTES = 64 << 20  # the longest program (ours)
PIXEL_BYTES = QUESTION_BYTES - 1024  # the largest picture or video, which has a shape before it in its question
SESSIONS = 256  # at once; more wait (ours)
START_S = 60.0  # in which a session starts, on an overloaded machine or after others have ended (ours)
_RETRY_S = 0.1  # pause after the machine refused a fork
_OUT_OF_MEMORY, _UNCONFINED = 3, 64  # exit statuses of a session's process; an errno is added to the second
Runner = Callable[[str, dict[str, Any]], str]


def _exactly(size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (received := os.read(0, size - len(parts))):
        parts += received
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
    body = text.encode(errors="replace")  # a lone surrogate cannot be encoded
    frame = memoryview(HEAD.pack(mark, len(body)) + body)
    while frame:
        frame = frame[os.write(0, frame) :]


def pixels_question(pixels: np.ndarray | None) -> bytes:
    """The body of a session's first question: a line of JSON, the shape, then the array's bytes (uint8)."""
    if pixels is None:
        return b""
    return json.dumps(pixels.shape).encode() + b"\n" + np.ascontiguousarray(pixels, np.uint8).tobytes()


def _pictures(body: bytes) -> dict[str, Any]:
    """The names that hold the first question's pixels: ``img`` and ``images`` of a picture, ``images`` of frames.

    Frames of one channel are grey pictures [H, W], as a single one is.
    """
    if not body:
        return {}
    end = body.index(b"\n")
    pixels = np.frombuffer(body, np.uint8, offset=end + 1).reshape(json.loads(body[:end])).copy()
    if pixels.ndim < 4:
        return {"img": pixels, "images": [pixels]}
    return {"images": list(pixels[..., 0] if pixels.shape[3] == 1 else pixels)}


def _session(runner: Runner) -> None:
    """Answer questions on descriptor 0 until the client is gone; names persist from cell to cell."""
    names = language.namespace()
    if (first := _question()) is None:
        return
    mark, body = first
    names |= _pictures(body)
    del first, body  # as large as the pixels, which the program needs room for
    _answer(mark, "")
    while (question := _question()) is not None:
        mark, body = question
        _answer(mark, runner(body.decode(errors="replace"), names))


@dataclass(frozen=True)
class _Running:
    """A session's process: its number, a pidfd that tells its end, and the client's control socket."""

    pid: int
    ended: int
    control: socket.socket


class SessionServer:
    """Starts a process per session, watches it, and says why it ended.

    Args:
        limits: the fields of `sandbox.Limits`.
        confinement: what each process applies to itself.
        runner: a cell's code and the session's names -> what the policy sees.
    """

    def __init__(self, limits: dict[str, Any], confinement: Confinement, runner: Runner) -> None:
        self._limits, self._confinement, self._runner = limits, confinement, runner
        self._started = 0

    def fork(self, data: socket.socket) -> int:
        """Start the process of a new session; returns its number.

        Raises:
            OSError: the machine has no process left.
        """
        self._started += 1
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            notebook.interrupt_cells()  # inside the confinement no handler can be set
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
        """Why a process ended, from its exit status and the resources that it used."""
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
        """Start sessions, and end those whose client hung up, until the channel or the client's process ends.

        Args:
            parent: a pidfd of the client's process.
        """
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # A request brings two descriptors. A session keeps two: the control socket and the pidfd.
        room = min(SESSIONS, (most - 16) // 2)
        running: dict[int, _Running] = {}  # each session under both of its descriptors
        waiting: tuple[socket.socket, socket.socket, float] | None = None  # data, control, until when
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(channel, select.POLLIN)
        while True:
            full = waiting is not None or len(running) // 2 >= room
            poll.modify(channel, 0 if full else select.POLLIN)  # its end is reported in any case
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
                    else:  # the machine had no descriptors for them; the client will find its sockets closed
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
        """Start the session that waits; returns it if it must wait longer because the machine refuses."""
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
        except OSError as error:  # this one cannot be watched; the others continue
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
        """Reap a process that ended, or whose client hung up, and say why."""
        session = running[fd]
        os.kill(session.pid, signal.SIGKILL)  # it is not reaped yet, so the number still belongs to it
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


def _trial(server: SessionServer) -> str:
    """Start a session to see whether one can be started here; returns why not, or ""."""
    ours, theirs = socket.socketpair()
    pid = server.fork(theirs)
    theirs.close()
    ours.settimeout(START_S)
    question, said = HEAD.pack(bytes(8), 0), b""
    with ours, suppress(OSError):
        ours.sendall(question)
        said = ours.recv(len(question))
    _, status, used = os.wait4(pid, 0)  # closing the connection ended it
    return "" if said == question else server.why(status, used)


def main(runner: Runner | None = None) -> None:
    """Serve; the command line is ``LIMITS_JSON strict|unsafe CLIENT_PID``.

    Args:
        runner: replaces `notebook.Notebook`, so that the isolation can be tested without the check of the language.
    """
    limits, mode, client = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client handles it
    parent = os.pidfd_open(client)
    if os.getppid() != client:
        return
    np.set_printoptions(legacy="1.25")  # show 7, not np.int64(7), which costs a policy ten tokens more
    namespaces = enter_namespaces()
    if namespaces:  # the first child is process 1 of the namespace: when it ends, the kernel kills every session
        if server := os.fork():
            forbid_tracing()
            os.waitpid(server, 0)
            return
        die_with(0)
    forbid_tracing()
    cells = notebook.Notebook(cpu_s=limits["cell_cpu_s"], output_chars=limits["output_chars"])
    confinement = Confinement(namespaces)
    sessions = SessionServer(limits, confinement, runner or cells.run)
    refused = confinement.isolation.seccomp or _trial(sessions)
    if refused and mode == "unsafe":
        confinement.without_filter(refused)
        refused = _trial(sessions)
    os.write(1, json.dumps({"refused": refused, "isolation": asdict(confinement.isolation)}).encode() + b"\n")
    if not refused:
        sessions.serve(socket.socket(fileno=0), parent)


if __name__ == "__main__":
    main()
