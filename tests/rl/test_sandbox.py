from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.rl.tools import sandbox_server
from model.rl.tools.sandbox import Limits, Sandbox

LIMITS = Limits(cell_cpu_s=0.5, session_cpu_s=2, memory_mb=128, output_chars=100)
IMG = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as running:
        yield running


def cells(sandbox: Sandbox, *codes: str) -> list[str]:
    async def run() -> list[str]:
        async with sandbox.session(IMG) as session:
            return [await session.run(code) for code in codes]

    return asyncio.run(run())


def test_state_persists_and_the_last_value_is_shown(sandbox: Sandbox) -> None:
    assert cells(sandbox, "x = 3", "x + 4", "print(1)\nx", "print(2);", "None") == ["", "7", "1\n3", "2", ""]


def test_img_is_the_array_and_scalars_print_plain(sandbox: Sandbox) -> None:
    assert cells(sandbox, "img.shape", "(img > 4).sum()", "img[1:, 2].max()", "img[0]") == [
        "(3, 4)", "7", "10", "array([0, 1, 2, 3], dtype=uint8)",
    ]  # fmt: skip


def test_sessions_do_not_see_each_other(sandbox: Sandbox) -> None:
    assert cells(sandbox, "img[:] = 0; secret = 1", "img.sum()") == ["", "0"]
    assert cells(sandbox, "img.sum()", "secret") == ["66", "NameError: name 'secret' is not defined"]


def test_errors_are_one_line_and_the_session_goes_on(sandbox: Sandbox) -> None:
    outputs = cells(sandbox, "1 / 0", "def f(:", "print('a')\nimg[9]", "1")
    assert outputs[0] == "ZeroDivisionError: division by zero"
    assert outputs[1].startswith("SyntaxError: ")
    assert outputs[2].startswith("a\nIndexError: ")
    assert outputs[3] == "1"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os", "ImportError: only numpy and math can be imported here, not os"),
        ("from subprocess import run", "ImportError: "),
        ("open('/etc/passwd')", "NameError: "),
        ("().__class__.__base__", "NameError: names that start with an underscore"),
        ("import numpy._core", "NameError: names that start with an underscore"),
        ("eval('1')", "NameError: "),
        ("np.save('x', img)", "OSError: "),
        ("np.memmap('/etc/passwd')", "OSError: "),
        ("np.loadtxt('/etc/passwd', dtype=str)", ""),
        ("[0] * 10**9", "MemoryError"),
        ("np.ones(10**9)", "MemoryError: "),
    ],
)
def test_refused(sandbox: Sandbox, code: str, error: str) -> None:
    outputs = cells(sandbox, code, "2")
    assert outputs[0].startswith(error) and "Error" in outputs[0]
    assert "root:" not in outputs[0]
    assert outputs[1] == "2"


def test_an_infinite_loop_is_interrupted(sandbox: Sandbox) -> None:
    assert cells(sandbox, "while True: pass", "5") == ["TimeoutError: the cell ran too long", "5"]


def test_a_loop_that_swallows_its_interrupt_is_killed(sandbox: Sandbox) -> None:
    stubborn = "while True:\n    try:\n        while True: sum(range(1000))\n    except BaseException: pass"
    outputs = cells(sandbox, stubborn, "5")
    assert outputs == [
        "RuntimeError: out of processor time or memory, the session is dead", "RuntimeError: the session is dead",
    ]  # fmt: skip


def test_a_growing_memory_bomb_ends_in_an_error(sandbox: Sandbox) -> None:
    outputs = cells(sandbox, "a = []\nwhile True: a.append(np.ones(10**6))", "a = 0; 6")
    assert outputs[0].startswith("MemoryError") and outputs[1] == "6"


def test_a_blocked_cell_is_killed_by_the_clock() -> None:
    with Sandbox(Limits(wall_s=0.3)) as impatient:
        outputs = cells(impatient, "while True: pass", "5")
    assert outputs == ["TimeoutError: the cell ran too long, the session is dead", "RuntimeError: the session is dead"]


def test_output_is_cut(sandbox: Sandbox) -> None:
    (output,) = cells(sandbox, "print('a' * 10**6)")
    assert output == "a" * 100 + "... [999901 more characters]"


def test_many_sessions_at_once(sandbox: Sandbox) -> None:
    async def one(number: int) -> str:
        async with sandbox.session(np.full((2, 2), number, np.uint8)) as session:
            await session.run("y = int(img[0, 0])")
            return await session.run("y")

    async def every() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(64)))

    assert asyncio.run(every()) == [str(number) for number in range(64)]


def test_no_process_is_left(sandbox: Sandbox) -> None:
    cells(sandbox, "1")
    assert sandbox._server is not None
    server = psutil.Process(sandbox._server.pid)
    deadline = time.monotonic() + 5
    # At most the namespace's first process below the one that was started: sessions are gone with their connections.
    while len(server.children(recursive=True)) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(server.children(recursive=True)) <= 1


def test_close_and_the_parents_death_end_everything(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time\nfrom model.rl.tools.sandbox import Sandbox\n"
        "async def main():\n"
        "    sandbox = Sandbox()\n"
        "    async with sandbox.session() as session:\n"
        "        await session.run('x = 1')\n"
        "        print(sandbox._server.pid, flush=True)\n"
        "        await session.run('while True: pass')\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    family = [server, *server.children(recursive=True)]
    assert len(family) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_confined_process_cannot_fork_open_or_connect_even_with_all_of_python() -> None:
    """Past the language barrier: what the operating system itself still refuses."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            sandbox_server._confine(theirs.fileno(), {"memory_mb": 4096, "session_cpu_s": 5}, 1 << 34, 200_001)
            outcomes = {}
            attempts = {
                "fork": os.fork,
                "read": lambda: os.open("/etc/passwd", os.O_RDONLY),
                "write": lambda: os.open("/tmp/moonflow-escape", os.O_WRONLY | os.O_CREAT),
                "socket": socket.socket,
                "raise_limit": lambda: sandbox_server.resource.setrlimit(sandbox_server.resource.RLIMIT_NOFILE, (9, 9)),
                "become_root": lambda: os.setuid(0) if os.getuid() else None,
            }
            for name, attempt in attempts.items():
                try:
                    outcomes[name] = f"allowed: {attempt()}"
                except (OSError, ValueError) as error:
                    outcomes[name] = type(error).__name__
            theirs.sendall(json.dumps(outcomes).encode())
        finally:
            os._exit(0)
    theirs.close()
    outcomes = json.loads(ours.recv(65536))
    os.waitpid(pid, 0)
    assert [name for name, outcome in outcomes.items() if outcome.startswith("allowed")] == []
