"""What the kernel refuses to a session of this user; `tests/benchmarks/sandbox.py` tries all users."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from model.boundary.errors import MoonflowError
from model.rl.tools.isolation import FATAL, Confinement
from model.rl.tools.sandbox import Sandbox
from tests.escapes import unchecked
from tests.escapes.programs import CALLS, CHECKED, UNCHECKED
from tests.escapes.world import attack, world

ROOT = Path(__file__).parents[3]
WHOLE = dict(list(UNCHECKED.items())[: -len(CALLS)])  # without the single system calls


def elsewhere(program: str) -> list[str]:
    """The lines that a program prints in another process."""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return done.stdout.splitlines()


def test_no_program_has_an_effect_outside() -> None:
    with world() as target:
        assert attack(target, unchecked=WHOLE) == (len(CHECKED) + len(WHOLE), [])


def test_no_program_has_an_effect_outside_where_namespaces_are_refused() -> None:
    (said,) = elsewhere(
        "import json\n"
        "from tests.benchmarks.sandbox import refuse_namespaces\n"
        "from tests.escapes.world import UncheckedSandbox, attack, world\n"
        "from tests.rl.tools.test_sandbox_isolation import WHOLE\n"
        "refuse_namespaces()\n"
        "with world() as target, UncheckedSandbox() as sandbox:\n"
        "    print(json.dumps([*attack(target, {}, WHOLE), sandbox.isolation.namespaces]))\n"
    )
    assert json.loads(said) == [len(WHOLE), [], False]


def test_no_system_call_of_the_list_succeeds() -> None:
    calls = {name: code for name, code in UNCHECKED.items() if name not in WHOLE}
    together = "\n".join(
        f"try: {code}\nexcept BaseException as error: print('refused', error)"
        for name, code in calls.items()
        if code.split("'")[1] not in FATAL
    )
    with world() as target:
        tried, escapes = attack(target, {}, {"every call that does not kill": together})
    assert (tried, escapes) == (1, [])


SEEN = {
    "read a file of the trainer": "read foreign data",
    "write a file": "changed files",
    "write into the trainer's memory": "changed the trainer's memory",
    "connect over TCP": "a message to",
    "connect to an abstract name": "a message to",
    "signal to the trainer": "a signal",
    "shared memory that stays": "left System V shm",
    "spawn": "ESCAPED",
    "scipy: its lazy modules": "ESCAPED",
    "PIL: open": "ESCAPED",
    "PIL: plug-ins": "ESCAPED",
    "scipy: unlink as a filter": "changed files",
    "rmdir (6)": "ESCAPED",
}


def test_the_same_programs_without_isolation_are_seen_to_escape() -> None:
    names = sorted({name for name, _ in CALLS})
    with world() as target:
        for name, seen in SEEN.items():
            code = "\n".join(f"{key} = {value!r}" for key, value in target.names.items()) + f"\n{UNCHECKED[name]}"
            program = f"from tests.escapes.unchecked import learn, run\nlearn({names!r})\nprint(run({code!r}, {{}}))"
            output = "\n".join(elsewhere(program))
            effects = target.effects(output)
            if "memory" not in seen or os.geteuid() == 0:  # Yama may keep a child from tracing its parent
                assert any(seen in effect for effect in effects), (name, output, effects)
            if name.startswith("shared memory"):
                unchecked.learn(["shmctl", "shmget"])
                assert unchecked.call("shmctl", unchecked.call("shmget", target.names["key"], 0, 0), 0, 0) == 0


REFUSING = (
    "import errno, pyseccomp as s\n"
    "from model.boundary.errors import MoonflowError\n"
    "from model.rl.tools.sandbox import Sandbox\n"
    "rules = s.SyscallFilter(s.ALLOW)\n"
    "rules.add_rule(s.ERRNO(errno.EPERM), 'seccomp')\n"
    "rules.add_rule(s.ERRNO(errno.EPERM), 'prctl', s.Arg(0, s.EQ, 22))\n"
    "rules.load()\n"
)


def test_without_a_filter_programs_are_refused_in_one_line() -> None:
    lines = elsewhere(
        REFUSING
        + "try: Sandbox().session()\nexcept MoonflowError as error: print(error)\nelse: raise SystemExit('it ran')"
    )
    (line,) = lines
    assert line.startswith("no program is run, because this machine cannot confine it: ")
    assert 'sandbox = "unsafe"' in line


def test_unsafe_runs_programs_with_what_there_is() -> None:
    lines = elsewhere(
        REFUSING + "import asyncio\n"
        "async def main(sandbox):\n"
        "    async with sandbox.session() as session: return await session.run('1 + 1')\n"
        "with Sandbox(mode='unsafe') as sandbox: print(asyncio.run(main(sandbox)), bool(sandbox.isolation.seccomp))\n"
    )
    assert lines == ["2 True"]


def test_a_machine_that_has_limits_of_its_own_keeps_them() -> None:
    lines = elsewhere(
        "import asyncio, resource\nfrom model.rl.tools.sandbox import Sandbox\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "async def main(sandbox):\n"
        "    async with sandbox.session() as session: return await session.run('1 + 1')\n"
        "from model.rl.tools.sandbox import Limits\n"
        "with Sandbox(Limits(session_cpu_s=60, memory_mb=4096)) as sandbox: print(asyncio.run(main(sandbox)))\n"
    )
    assert lines == ["2"]


def test_the_isolation_of_this_machine_is_told() -> None:
    others = set(psutil.Process().children())  # of the tests before this one
    with Sandbox() as sandbox:
        isolation = sandbox.isolation
        (server,) = set(psutil.Process().children()) - others
    assert isolation.seccomp == "" and str(isolation).startswith("seccomp")
    assert not server.is_running()


def test_a_session_keeps_one_descriptor_and_no_high_one() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    ours, theirs = socket.socketpair()
    readable, writable = os.pipe()
    os.write(writable, b"secret")
    high = os.dup2(readable, 5000)
    confinement = Confinement(namespaces=False)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            confinement.enter(theirs.fileno(), memory_mb=1 << 20, session_cpu_s=5, number=1)
            said = []
            for descriptor in (1, 2, readable, high):
                try:
                    said.append(os.read(descriptor, 6).decode())
                except OSError as error:
                    said.append(error.strerror)
            os.write(0, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(high)
    os.waitpid(pid, 0)
    assert json.loads(ours.recv(4096)) == ["Bad file descriptor"] * 4


def test_a_server_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MoonflowError, match="the sandbox server did not start: No such file"):
        Sandbox().session()
