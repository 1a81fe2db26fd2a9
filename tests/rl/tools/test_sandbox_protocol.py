"""What the client accepts from a session's process, which may send anything."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from model.codec.chat import ToolCall
from model.data.samples.sample import Sample
from model.rl.tools.sandbox import Limits, Sandbox, Session
from model.rl.tools.sandbox_server import SessionServer
from model.rl.tools.toolset import EpisodeTools
from tests.escapes.world import UncheckedSandbox
from tests.rl.tools.in_session import cells

LIMITS = Limits(cell_cpu_s=1, session_cpu_s=2, wall_s=20, output_chars=100)
MOST = 4 * (100 + 64)  # bytes of an answer
# The mark of the question in hand, from the frame of the session's own loop.
MARK = "import sys\nf = sys._getframe()\nwhile 'mark' not in f.f_locals: f = f.f_back\nmark = f.f_locals['mark']\n"


@pytest.fixture(scope="module")
def hostile() -> Iterator[UncheckedSandbox]:
    with UncheckedSandbox(LIMITS) as running:
        yield running


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.write(0, b'x' * 100)", "RuntimeError: it answered what was not asked"),
        ("os.write(0, b'{\"output\": 1}' * 9)", "RuntimeError: it answered what was not asked"),
        (
            MARK + "os.write(0, struct.pack('>8sI', mark, 1 << 30))",
            f"RuntimeError: an answer of {1 << 30} bytes, more than {MOST}",
        ),
        ("os._exit(0)", "RuntimeError: its process ended itself"),
        (MARK + "os.write(0, mark + b'\\0')\nos._exit(0)", "RuntimeError: its process ended itself"),
        ("os.kill(1, 9)", "RuntimeError: a forbidden system call"),
        ("ctypes.string_at(0)", "RuntimeError: crashed: Segmentation fault"),
        ("while True: pass", "RuntimeError: out of processor time"),
    ],
)
def test_a_session_that_breaks_the_rules_ends_and_says_why(hostile: UncheckedSandbox, code: str, said: str) -> None:
    assert cells(hostile, code, "print(2)") == [f"{said}, the session is dead", "RuntimeError: the session is dead"]
    assert cells(hostile, "print(3)") == ["3\n"], "the other sessions continue"


def test_an_answer_is_bounded_text_whatever_bytes_it_is(hostile: UncheckedSandbox) -> None:
    answer = MARK + f"os.write(0, struct.pack('>8sI', mark, {MOST}) + b'\\xed\\xa0\\xbd' * {MOST})\nwhile True: pass"
    (said,) = cells(hostile, answer)
    assert said == "\ufffd" * 164
    assert said.encode()


def test_an_answer_written_ahead_is_not_the_next_questions(hostile: UncheckedSandbox) -> None:
    twice = MARK + "os.write(0, (struct.pack('>8sI', mark, 1) + b'1') * 2)"
    assert cells(hostile, twice, "print(2)")[1] == "RuntimeError: it answered what was not asked, the session is dead"


def test_a_cell_that_is_given_up_leaves_no_answer_for_the_next() -> None:
    async def main(sandbox: Sandbox) -> str:
        async with sandbox.session() as session:
            asked = asyncio.ensure_future(session.run("while True: pass"))
            await asyncio.sleep(0.1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return await session.run("1")

    with Sandbox(LIMITS) as sandbox:
        assert asyncio.run(main(sandbox)) == "RuntimeError: the session is dead"


def test_without_the_server_a_session_says_so_and_the_next_one_has_a_new_server(hostile: UncheckedSandbox) -> None:
    async def main() -> list[str]:
        async with hostile.session() as session:
            hostile.close()
            said = [await session.run("print(1)")]
        early = hostile.session()
        hostile.close()
        async with early as session:
            said.append(await session.run("print(1)"))
        async with hostile.session() as session:
            return [*said, await session.run("print(1)")]

    said = asyncio.run(main())
    assert said[0] == "RuntimeError: the sandbox server ended, the session is dead"
    assert said[1].startswith("RuntimeError: no session: the sandbox server is gone")
    assert said[2] == "1\n"


class Crowded(SessionServer):
    """On a machine that has no process left, twice."""

    refused = 0

    def fork(self, data: socket.socket) -> int:
        if self.refused < 2:
            self.refused += 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().fork(data)


def test_a_session_waits_for_a_process_where_there_is_none_left() -> None:
    # A fork of this process must not hold the client's sockets.
    open_ground: Any = SimpleNamespace(enter=lambda connection, **_: (os.dup2(connection, 0), os.closerange(1, 4096)))
    server = Crowded({"memory_mb": 1, "session_cpu_s": 1}, open_ground, lambda code, names: code)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    running = threading.Thread(target=server.serve, args=(theirs, os.pidfd_open(os.getppid())))
    running.start()

    async def main() -> str:
        async with Session(ours, LIMITS, None) as session:
            return await session.run("echo")

    assert asyncio.run(main()) == "echo"
    assert server.refused == 2
    ours.close()
    running.join()


class Ending(Sandbox):
    """Its server ends before a session is entered."""

    def session(self, array: Any = None) -> Session:
        session = super().session(array)
        self.close()
        return session


def test_a_session_that_cannot_be_had_fails_the_episode_and_is_no_observation() -> None:
    """A policy must not learn from trouble of the machine that it runs on."""
    sample = Sample("k", "array_tool", "coding", "text", "s", tools=["ipython"])
    call = ToolCall("functions.ipython:0", "ipython", {"code": "1"})
    with pytest.raises(MoonflowError, match="no program of sample k can be run: no session: the sandbox"):
        asyncio.run(EpisodeTools(Ending(LIMITS), sample).call(call))
