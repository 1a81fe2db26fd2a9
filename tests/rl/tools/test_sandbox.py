"""Cells of a session: what they show, and where their limits are."""

from __future__ import annotations

import asyncio
import multiprocessing.context
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.rl.tools.sandbox import Limits, Sandbox
from tests.rl.tools import in_session
from tests.waiting import happens

LIMITS = Limits(cell_cpu_s=0.5, session_cpu_s=2, memory_mb=128, output_chars=100)
IMG = np.arange(12, dtype=np.uint8).reshape(3, 4)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as running:
        yield running


cells = partial(in_session.cells, array=IMG)


def python(program: str, **environment: str) -> subprocess.Popen[str]:
    """A process that uses the sandbox, as a trainer would."""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment
    )


def test_state_persists_and_the_last_value_is_shown(sandbox: Sandbox) -> None:
    assert cells(sandbox, "x = 3", "x + 4", "print(1)\nx", "print(2);", "None") == ["", "7", "1\n3", "2", ""]


def test_img_is_the_array_and_scalars_print_plain(sandbox: Sandbox) -> None:
    assert cells(sandbox, "img.shape", "(img > 4).sum()", "img[1:, 2].max()", "img[0]") == [
        "(3, 4)", "7", "10", "array([0, 1, 2, 3], dtype=uint8)",
    ]  # fmt: skip


def test_sessions_do_not_see_each_other(sandbox: Sandbox) -> None:
    assert cells(sandbox, "img[:] = 0; secret = 1", "img.sum()") == ["", "0"]
    assert cells(sandbox, "img.sum()", "secret") == ["66", "line 1: secret\nNameError: name 'secret' is not defined"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os", "ImportError: only math, numpy, scipy.ndimage and PIL (Image, Ima"),
        ("from subprocess import run", "NameError: subprocess is not available here"),
        ("open('/etc/passwd')", "NameError: "),
        ("().__class__.__base__", "NameError: names that start with an underscore"),
        ("import numpy._core", "NameError: names that start with an underscore"),
        ("eval('1')", "NameError: "),
        ("np.save('x', img)", "PermissionError: "),
        ("np.memmap('/etc/passwd')", "NameError: memmap is not available here"),
        ("np.loadtxt('/etc/passwd', dtype=str)", "PermissionError: "),
        ("[0] * 10**9", "MemoryError"),
        ("np.ones(10**9)", "MemoryError: "),
    ],
)
def test_refused(sandbox: Sandbox, code: str, error: str) -> None:
    outputs = cells(sandbox, code, "2")
    assert outputs[0].splitlines()[-1].startswith(error)
    assert "root:" not in outputs[0]
    assert outputs[1] == "2"


def test_what_programs_of_good_faith_write_works(sandbox: Sandbox) -> None:
    codes = {
        "'{:.2f} {}'.format(1.5, [1])": "'1.50 [1]'",
        "', '.join(map('{:>2}'.format, [1, 2]))": "' 1,  2'",
        "'{a[0]}'.format_map({'a': [7]})": "'7'",
        "isinstance(img, np.ndarray), isinstance(1, (int, np.ndarray))": "(True, True)",
        "def total(x: np.ndarray) -> int: return int(x.sum())\ntotal(img)": "66",
        "[0 for _ in range(2)]": "[0, 0]",
        "ma = 3\nma": "3",
        "np.unique(img[:1] // 2)": "array([0, 1], dtype=uint8)",
        "np.polynomial.polynomial.polyval(2, [1, 2])": "5.0",
        "np.linalg.svd(np.eye(2))[1]": "array([1., 1.])",
        "np.random.default_rng(0).integers(9) < 9": "True",
        "np.median(img), 1 / np.zeros(1)": "(5.5, array([inf]))",
    }
    assert dict(zip(codes, cells(sandbox, *codes), strict=True)) == codes


def test_lone_surrogates_leave_as_text(sandbox: Sandbox) -> None:
    outputs = cells(sandbox, "print(chr(0xd83d))", r"raise ValueError('\ud800')", "'\ud83d' + 'a'")
    assert outputs == ["?", "line 1: raise ValueError('\\ud800')\nValueError: ?", "'?a'"]
    assert [output.encode() for output in outputs]


def test_an_error_that_cannot_be_shown_says_so_and_the_session_goes_on(sandbox: Sandbox) -> None:
    nested = "l = []\nfor _ in range(10**5): l = [l]\nraise ValueError(l)"
    told = "line 3: raise ValueError(l)\nValueError: (its message cannot be shown: RecursionError)"
    assert cells(sandbox, nested, "5") == [told, "5"]


def test_an_infinite_loop_is_interrupted(sandbox: Sandbox) -> None:
    assert cells(sandbox, "while True: pass", "5") == ["TimeoutError: the cell ran too long", "5"]


TOO_LONG = ["RuntimeError: out of processor time, the session is dead", "RuntimeError: the session is dead"]


def test_a_loop_that_swallows_its_interrupt_is_killed(sandbox: Sandbox) -> None:
    stubborn = "while True:\n    try:\n        while True: sum(range(1000))\n    except BaseException: pass"
    assert cells(sandbox, stubborn, "5") == TOO_LONG


@pytest.mark.parametrize(
    "code",
    [
        "np.matmul(*[np.broadcast_to(img[:1, :1].astype(int), (4000, 4000))] * 2)",
        "sum(map(len, map(bytes, [9**7] * 10**7)))",
    ],
    ids=["one call", "a call of calls"],
)
def test_a_loop_in_c_is_held_to_the_cells_limit_not_to_the_sessions(code: str) -> None:
    with Sandbox(Limits(cell_cpu_s=0.2, session_cpu_s=30, memory_mb=512)) as patient:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert cells(patient, code, "5") == TOO_LONG
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The server's own start included.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6


def test_a_growing_memory_bomb_ends_in_an_error(sandbox: Sandbox) -> None:
    outputs = cells(sandbox, "a = []\nwhile True: a.append(np.ones(10**6))", "a = 0; 6")
    assert "\nMemoryError" in outputs[0] and outputs[1] == "6"


def test_a_blocked_cell_is_killed_by_the_clock() -> None:
    with Sandbox(Limits(wall_s=0.3, cell_cpu_s=30)) as impatient:
        outputs = cells(impatient, "while True: pass", "5")
    assert outputs == ["TimeoutError: the cell ran too long, the session is dead", "RuntimeError: the session is dead"]


def test_more_than_a_session_takes_is_refused_by_name(sandbox: Sandbox) -> None:
    assert cells(sandbox, "#" * (64 << 20) + "##")[0] == (
        f"RuntimeError: {(64 << 20) + 2} bytes are more than the {64 << 20} that a session takes, the session is dead"
    )


def test_hundreds_of_sessions_at_once_all_answer(sandbox: Sandbox) -> None:
    async def one(number: int) -> str:
        async with sandbox.session(np.full((2, 2), number % 256, np.uint8)) as session:
            await session.run("y = int(img[0, 0])")
            return await session.run("y")

    async def every() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(400)))

    assert asyncio.run(every()) == [str(number % 256) for number in range(400)]


def test_with_few_descriptors_sessions_wait_for_each_other() -> None:
    program = (
        "import asyncio, resource\n"
        "from model.rl.tools.sandbox import Sandbox\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "async def one(sandbox, number):\n"
        "    async with sandbox.session() as session:\n"
        "        return await session.run(str(number))\n"
        "async def main():\n"
        "    with Sandbox() as sandbox:\n"
        "        print(await asyncio.gather(*(one(sandbox, number) for number in range(40))))\n"
        "asyncio.run(main())\n"
    )
    said, _ = python(program).communicate()
    assert said.strip() == str([str(number) for number in range(40)])


def test_no_process_is_left() -> None:
    others = set(psutil.Process().children(recursive=True))  # of the tests before this one

    def ours() -> int:
        return len(set(psutil.Process().children(recursive=True)) - others)

    with Sandbox(LIMITS) as sandbox:
        cells(sandbox, "1")
        # Sessions are gone with their connections; the server may have a parent in the outer namespace.
        assert happens(lambda: ours() <= 2, 5) and ours() >= 1
    assert ours() == 0


def test_a_fork_of_the_client_keeps_neither_sessions_nor_server_alive() -> None:
    async def main(sandbox: Sandbox) -> multiprocessing.context.ForkProcess:
        async with sandbox.session() as session:
            await session.run("1")
            heir = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            heir.start()
        return heir

    sandbox = Sandbox()
    before = set(psutil.Process().children())
    assert sandbox.isolation
    (server,) = set(psutil.Process().children()) - before
    heir = asyncio.run(main(sandbox))
    try:
        assert happens(lambda: len(server.children(recursive=True)) <= 1, 5)
        sandbox.close()
        assert not server.is_running()
    finally:
        heir.kill()
        heir.join()


@pytest.mark.parametrize("heir", ["", "os.fork() or time.sleep(60)\n"], ids=["alone", "its fork holds the channel too"])
def test_the_clients_death_ends_everything_and_leaves_nothing(heir: str, tmp_path: Path) -> None:
    program = (
        "import asyncio, os, time\nfrom model.rl.tools.sandbox import Sandbox\n"
        "async def main():\n"
        "    sandbox = Sandbox()\n"
        "    async with sandbox.session() as session:\n"
        "        await session.run('x = 1')\n"
        f"        {heir or chr(10)}"
        "        print(flush=True)\n"
        "        await session.run('while True: pass')\n"
        "asyncio.run(main())\n"
    )
    parent = python(program, TMPDIR=str(tmp_path))
    assert parent.stdout is not None
    parent.stdout.readline()
    family = {child.pid: child for child in psutil.Process(parent.pid).children(recursive=True)}
    servers = [each for each in family.values() if "sandbox_server" in " ".join(each.cmdline())]
    assert len(servers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(servers, timeout=5)
    for each in set(family.values()) - set(servers):
        each.kill()
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.iterdir()) == []
