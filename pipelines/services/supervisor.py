"""The parent of a run's services: it ends them all when its own parent is gone, however that ended.

It lives as long as the run and should cost next to nothing. So it is started by its path (``python -I``), uses only the
standard library, and does not import ``model.boundary.parent_process``. It reads one JSON line from stdin,
``{"commands": [{"name", "argv", "env", "cwd", "log"}], "remove": [path, ...]}``, and then watches stdin: a closed pipe
means that the owner is dead or done, a line ``keep`` means that the services go on without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """Called in a child: the kernel kills it when this process ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = os.getppid()
    spec = json.loads(sys.stdin.readline())
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in spec["commands"]:
            with open(command["log"], "ab") as log:
                child = subprocess.Popen(
                    command["argv"],
                    env=command["env"],
                    cwd=command["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_die_with_parent,
                )
            children.append(child)
            print(json.dumps({"name": command["name"], "pid": child.pid}), flush=True)
        _watch(owner, children)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(children)
        for path in spec["remove"]:
            with contextlib.suppress(OSError):
                os.unlink(path)
        # mlflow's children are in this process group too: this ends them, and this process.
        os.killpg(0, signal.SIGKILL)


def _watch(owner: int, children: list[subprocess.Popen[bytes]]) -> None:
    """Return when a child has ended or the owner is gone."""
    kept = False
    while all(child.poll() is None for child in children):
        if kept:
            time.sleep(0.5)
            continue
        readable, _, _ = select.select([sys.stdin], [], [], 0.5)
        if readable:
            line = sys.stdin.readline()
            if not line:
                return
            kept = line.strip() == "keep"
        elif os.getppid() != owner:  # a forked child of the owner may still hold the pipe open
            return


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_S
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    main()
