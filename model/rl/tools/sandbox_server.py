"""The server side of the sandbox: ``python sandbox_server.py SOCKET LIMITS_JSON``, started by `sandbox.Sandbox`.

One process imports numpy and nothing else, then forks a child per connection: a session starts in
milliseconds with the libraries already loaded. A session lives as long as its connection. It is killed when the client
closes it, and everything is killed when the server's standard input ends, i.e. when its parent is gone.

Frames are a 4-byte big-endian length and that many bytes of JSON. First frame of a session: ``{"shape": [H, W],
"data": base64 of uint8} | {}`` -> ``{}``. Then per cell ``{"code": str}`` -> ``{"output": str}``.

What holds a program back, from the inside out:
    - an AST check refuses underscore names, and builtins and imports are a short list (numpy, math);
    - the child drops root (a uid of its own), may open no further file descriptor (so no files and no sockets), may
      not fork, and has limits on processor time and memory;
    - the server runs in new network, IPC and process namespaces where the kernel permits it (root, or unprivileged
      user namespaces).

What it does NOT cover: no seccomp filter, so a program that breaks out of CPython (memory corruption in native code)
can still make system calls that need no descriptor; kernel bugs; side channels; reading what the parent imported
(nothing secret is in this process); and, where namespaces are refused to a non-root user, such a broken-out program
may signal other processes of the same user. For hostile code put a virtual machine around the job.
"""

from __future__ import annotations

import ast
import base64
import builtins
import contextlib
import ctypes
import io
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
from types import CodeType
from typing import Any

import numpy as np
import numpy.fft
import numpy.linalg
import numpy.random  # noqa: F401  (loaded before the fork: a session may open no file)

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
FIRST_UID = 200_000  # outside the ranges of people and services
FRAME_LIMIT = 64 << 20
MODULES = ("numpy", "math")
BUILTINS = (
    "abs", "all", "any", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float",
    "format", "frozenset", "hash", "hex", "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max",
    "min", "next", "oct", "ord", "pow", "print", "range", "repr", "reversed", "round", "set", "slice", "sorted",
    "str", "sum", "tuple", "zip", "ArithmeticError", "AssertionError", "AttributeError", "BaseException",
    "Exception", "ImportError", "IndexError", "KeyError", "LookupError", "MemoryError", "NameError",
    "NotImplementedError", "OverflowError", "RuntimeError", "StopIteration", "SyntaxError", "TimeoutError",
    "TypeError", "ValueError", "ZeroDivisionError",
)  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


def read_frame(connection: socket.socket) -> dict[str, Any] | None:
    """The next frame, or None when the peer is gone."""

    def exactly(size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size and (piece := connection.recv(size - len(parts))):
            parts += piece
        return bytes(parts)

    head = exactly(4)
    if len(head) < 4 or (size := struct.unpack(">I", head)[0]) > FRAME_LIMIT:
        return None
    body = exactly(size)
    return json.loads(body) if len(body) == size else None


def write_frame(connection: socket.socket, frame: dict[str, Any]) -> None:
    body = json.dumps(frame).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)


class _Bounded(io.TextIOBase):
    """Standard output of a cell: the first ``limit`` characters are kept, the rest is counted."""

    def __init__(self, limit: int) -> None:
        self.limit, self.kept, self.total = limit, "", 0

    def write(self, text: str) -> int:
        self.kept += text[: self.limit - len(self.kept)]
        self.total += len(text)
        return len(text)

    def text(self) -> str:
        dropped = self.total - len(self.kept)
        return self.kept.rstrip("\n") + (f"... [{dropped} more characters]" if dropped else "")


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    if name.split(".")[0] not in MODULES:  # numpy's own C code passes here too, for its private modules
        raise ImportError(f"only {' and '.join(MODULES)} can be imported here, not {name}")
    return builtins.__import__(name, *args, **kwargs)


def _compile(code: str) -> tuple[CodeType, CodeType | None]:
    """The cell without its last expression, and that expression (whose value is displayed)."""
    tree = ast.parse(code, "<cell>")
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "module", None)
        name = name or (node.name if isinstance(node, ast.alias) else "")
        if any(part.startswith("_") for part in name.split(".")):
            raise NameError(f"names that start with an underscore are not available: {name}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    tail = compile(ast.Expression(last.value), "<cell>", "eval") if isinstance(last, ast.Expr) else None
    return compile(tree, "<cell>", "exec"), tail


def run_cell(code: str, names: dict[str, Any], limits: dict[str, float]) -> str:
    """Run one cell in ``names``; what it printed, then its last value, or its last traceback line."""
    out = _Bounded(int(limits["output_chars"]))
    try:
        signal.setitimer(signal.ITIMER_PROF, limits["cell_cpu_s"])
        with contextlib.redirect_stdout(out):
            body, tail = _compile(code)
            exec(body, names)
            value = eval(tail, names) if tail is not None else None
            if value is not None:
                print(repr(value))
    except BaseException as error:
        message = " ".join(str(error).split())
        out.write(f"{type(error).__name__.removeprefix('_')}: {message}" if message else type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return out.text()


def _confine(keep: int, limits: dict[str, float], base_bytes: int, uid: int) -> None:
    """Give up every privilege; only the descriptor ``keep`` stays open."""
    os.closerange(0, keep)
    os.closerange(keep + 1, 4096)
    memory = base_bytes + int(limits["memory_mb"]) * 2**20
    cpu = math.ceil(limits["session_cpu_s"])
    for what, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (value, value))
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:  # root is exempt from RLIMIT_NPROC; failing to drop it ends the session
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _timed_out(signum: int, frame: object) -> None:
    raise TimeoutError("the cell ran too long")


def _session(connection: socket.socket, limits: dict[str, float], base_bytes: int, uid: int) -> None:
    """A kernel: names persist from cell to cell until the client is gone."""
    _confine(connection.fileno(), limits, base_bytes, uid)
    signal.signal(signal.SIGPROF, _timed_out)
    allowed = {name: getattr(builtins, name) for name in BUILTINS}
    allowed["__import__"] = _import
    names: dict[str, Any] = {"__builtins__": allowed, "__name__": "__main__", "np": np, "math": math}
    first = read_frame(connection)
    if first and "data" in first:
        names["img"] = np.frombuffer(base64.b64decode(first["data"]), np.uint8).reshape(first["shape"]).copy()
    write_frame(connection, {})
    while (frame := read_frame(connection)) is not None:
        write_frame(connection, {"output": run_cell(str(frame["code"]), names, limits)})


def serve(path: str, limits: dict[str, float]) -> None:
    """Accept sessions until standard input ends; kill each session whose client hung up."""
    np.set_printoptions(legacy="1.25")  # a NumPy 7 shows as 7: `np.int64(7)` would cost a policy ten tokens
    with open("/proc/self/statm") as statm:
        base_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(256)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(listener, select.POLLIN)
    sessions: dict[int, tuple[int, int, socket.socket]] = {}  # by both descriptors to watch
    os.write(1, b"ready\n")
    started = 0
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                if not os.read(0, 1):
                    for pid, _, _ in sessions.values():
                        os.kill(pid, signal.SIGKILL)
                    return
            elif fd == listener.fileno():
                connection, _ = listener.accept()
                started += 1
                pid = os.fork()
                if pid == 0:
                    try:
                        _session(connection, limits, base_bytes, FIRST_UID + started % 100_000)
                    finally:
                        os._exit(0)
                ended = os.pidfd_open(pid)
                sessions[ended] = sessions[connection.fileno()] = (pid, ended, connection)
                poll.register(connection, select.POLLRDHUP)  # the child reads; here only the hang-up is of interest
                poll.register(ended, select.POLLIN)
            elif fd in sessions:  # the client hung up, or the session was killed by a limit
                pid, ended, connection = sessions[fd]
                os.kill(pid, signal.SIGKILL)  # not yet reaped, so the number is still this child's
                os.waitpid(pid, 0)
                for watched in (ended, connection.fileno()):
                    poll.unregister(watched)
                    del sessions[watched]
                os.close(ended)
                connection.close()


def isolate() -> bool:
    """New network, IPC and process namespaces; False where the kernel refuses them."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC
    if uid == 0 and _libc.unshare(flags) == 0:
        return True
    if uid == 0 or _libc.unshare(flags | CLONE_NEWUSER) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def main(path: str, limits: dict[str, float]) -> None:
    if isolate():  # the first child is process 1 of the namespace: when it ends, the kernel kills every session
        server = os.fork()
        if server:
            os.waitpid(server, 0)
            return
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    serve(path, limits)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
