"""The sandbox's server without the check of the language: programs get all of Python and ctypes.

The isolation is the same as in service, and is applied in the same order.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any

import pyseccomp

from model.rl.tools import sandbox_server

_libc = ctypes.CDLL(None, use_errno=True)
_LIBRARIES = (ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, threading)
_NUMBERS: dict[str, int] = {}


def learn(names: Iterable[str]) -> None:
    """Look up the numbers of system calls, before the isolation forbids it."""
    for name in names:
        _NUMBERS[name] = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)


def call(name: str, *arguments: Any) -> int:
    """Make a system call; returns its result, -1 if it was refused."""
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *wide))


def iov(of: Any, size: int = 0) -> bytes:
    """A struct iovec for a ctypes object, or for ``size`` bytes at an address."""
    return (
        struct.pack("QQ", of, size)
        if isinstance(of, int)
        else struct.pack("QQ", ctypes.addressof(of), ctypes.sizeof(of))
    )


def attempt(name: str, *arguments: Any) -> None:
    """Make a system call that no program may make, and print whether it succeeded."""
    if (result := call(name, *arguments)) >= 0:
        print("ESCAPED:", name, "returned", result)
    else:
        print("refused:", name, errno.errorcode.get(ctypes.get_errno(), "?"))


def run(code: str, names: dict[str, Any]) -> str:
    names["__builtins__"] = __builtins__
    names |= {library.__name__: library for library in _LIBRARIES}
    names |= {"libc": _libc, "buffer": ctypes.create_string_buffer(256), "iov": iov, "call": call, "attempt": attempt}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, names)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
    return out.getvalue()[:400]


if __name__ == "__main__":
    from tests.escapes.programs import CALLS, X32

    learn({name for name, _ in CALLS} | set(X32))
    _NUMBERS.update({f"{name} of the x32 interface": _NUMBERS[name] | 0x40000000 for name in X32})
    sandbox_server.main(run)
