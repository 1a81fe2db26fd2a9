"""The program that starts a confined process for each part of a video (source: ours; `model.rl.tools.isolation`).

It never sees a video: the forked process maps the file into memory, then gives up all but the pipe to which it writes
one JSON object. It can open no file and no connection, and has limits of memory and processor time; this program ends
it after a time by the clock, and then writes to the same pipe why it ended, and why it had no seccomp filter. So the
last line is never the hostile process's own.

Its standard input is a socket of whole messages: each is a question in JSON, and brings the pipe. When the socket or
the client ends, all ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from model.rl.tools.isolation import Confinement, die_with
from model.swarm.video.decoder import Unreadable, mapped, probe, sample, warm_up

QUESTION_BYTES = 65_536
SLOWER = 8.0  # by the clock, a part may take so many times its processor seconds, and START_S: others share the cores
START_S = 30.0


@dataclass
class Child:
    """A process that reads a part; its number, and when it has to have ended."""

    pid: int
    ended: int  # a descriptor that can be read when it has ended
    pipe: int
    deadline: float
    late: bool = False


def _answer(asked: dict[str, Any], data: Any) -> dict[str, Any]:
    try:
        if asked["part"] is None:
            return probe(data, asked["cpu_s"])
        start, end = asked["part"]
        return sample(data, start, end, asked["frames"], asked["size"], asked["cpu_s"])
    except Unreadable as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"it takes over {asked['memory_mb']} MiB to decode"}
    except Exception as error:  # FFmpeg raises errors of every kind
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return {"error": " ".join(f"it cannot be decoded ({told})".split())[:300]}


def _write(text: str, pipe: int) -> None:
    rest = memoryview(text.encode())
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _read_part(asked: dict[str, Any], pipe: int, walls: Confinement) -> None:
    """What the forked process does."""
    try:
        data = mapped(asked["path"])
    except Unreadable as error:
        _write(json.dumps({"error": str(error)}), pipe)
        return
    memory = asked["memory_mb"] + len(data) // 2**20 + 1  # the mapped file counts, though it takes none
    walls.enter(pipe, memory_mb=memory, session_cpu_s=asked["cpu_s"], number=asked["number"])
    _write(json.dumps(_answer(asked, data)), 0)


def _start(message: bytes, pipe: int, walls: Confinement) -> Child:
    asked = json.loads(message)
    if (pid := os.fork()) == 0:
        status = 1
        with suppress(BaseException):
            _read_part(asked, pipe, walls)
            status = 0
        os._exit(status)
    return Child(pid, os.pidfd_open(pid), pipe, time.monotonic() + START_S + SLOWER * asked["cpu_s"])


def reap(child: Child, unfiltered: str) -> None:
    """Write how a process ended: 0, its status, or minus the signal's number; "late" if it was ended by the clock."""
    status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    with suppress(OSError):  # the client reads no more
        # The pipe may be full of what the process wrote, and this program must not wait for the client.
        fcntl.fcntl(child.pipe, fcntl.F_SETPIPE_SZ, 2 * fcntl.fcntl(child.pipe, fcntl.F_GETPIPE_SZ))
        os.set_blocking(child.pipe, False)
        _write("\n" + json.dumps(["late" if child.late else status, unfiltered]), child.pipe)
    os.close(child.pipe)
    os.close(child.ended)


def _walls() -> Confinement:
    """The layers that this machine applies: some kernels know the filter and do not load it."""
    walls = Confinement(namespaces=False)
    if (pid := os.fork()) == 0:
        status = 1
        with suppress(BaseException):
            walls.enter(os.open(os.devnull, os.O_WRONLY), memory_mb=64, session_cpu_s=1.0, number=0)
            status = 0
        os._exit(status)
    if os.waitpid(pid, 0)[1]:
        walls.without_filter("this machine does not load it")
    return walls


def main() -> None:
    die_with(int(sys.argv[1]))
    channel, children = socket.socket(fileno=0), list[Child]()
    warm_up()
    walls = _walls()
    while True:
        waited: list[Any] = [channel, *(child.ended for child in children)]
        readable = select.select(waited, [], [], 1.0)[0]
        for child in [child for child in children if child.ended in readable]:
            reap(child, walls.isolation.seccomp)
            children.remove(child)
        for child in children:
            if time.monotonic() > child.deadline:
                child.late = True
                os.kill(child.pid, signal.SIGKILL)
        if channel in readable:
            message, pipes, _, _ = socket.recv_fds(channel, QUESTION_BYTES, 1)
            if not message:
                return
            children.append(_start(message, pipes[0], walls))


if __name__ == "__main__":
    main()
