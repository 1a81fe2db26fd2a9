"""Programs that try to leave the sandbox: how many are tried, how many have an effect outside, and how fast cells run.

    python tests/benchmarks/sandbox.py [--json]

Each program runs in a separate session, in up to four cases: as root and as user 65534 (`nobody`), each with
namespaces and without. For the cases without, a filter around the whole case refuses unshare(2), as container runtimes
do. The programs are in `tests/escapes`: some go through the check of the language, most start without it, with all of
Python and ctypes. An escape is an effect outside of the session: a file read or changed, a message, a signal, a new
process, a change to another process's memory, shared memory or a process left over, or a system call that succeeds and
should not.

If this user is not root, only the two cases of this user are tried, and the others are reported as not measured.
``executions_per_s`` counts cells in one warm session, ``sessions_per_s`` sessions with one cell each, one after the
other, with all layers of isolation that the machine has. Expect a few minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pyseccomp  # noqa: E402

from model.rl.tools.sandbox import Limits, Sandbox  # noqa: E402
from tests.escapes.world import attack, world  # noqa: E402

NOBODY = 65534
CELLS, SESSIONS = 2000, 100
PATIENCE_S = 600
# nobody may not enter root's home. So the case gets its own mount namespace, where only the interpreter is left of it.
REACHABLE = """set -e
mount --rbind "$2" "$3"; mount -t tmpfs -o mode=755 none "$1"; mkdir -p "$2"; mount --rbind "$3" "$2"
shift 3; exec "$@"
"""


def refuse_namespaces() -> None:
    """Refuse namespaces, as the default profile of a container runtime does to a pod without privileges."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.add_rule(pyseccomp.ERRNO(1), "unshare")
    rules.load()


def case(user: int, namespaces: bool) -> dict[str, object]:
    """Run all programs as ``user``, which this process becomes."""
    if os.getuid() != user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if not namespaces:
        refuse_namespaces()
    with world() as target:
        tried, escapes = attack(target)
    with Sandbox() as sandbox:
        return {"tried": tried, "escapes": escapes, "isolation": str(sandbox.isolation)}


def speed() -> dict[str, float]:
    async def measure(sandbox: Sandbox) -> dict[str, float]:
        async with sandbox.session() as session:
            await session.run("1")
            began = time.perf_counter()
            for number in range(CELLS):
                await session.run(f"{number} + 1")
            cells = CELLS / (time.perf_counter() - began)
        began = time.perf_counter()
        for number in range(SESSIONS):
            async with sandbox.session() as session:
                await session.run(f"{number} + 1")
        return {
            "executions_per_s": round(cells, 1),
            "sessions_per_s": round(SESSIONS / (time.perf_counter() - began), 1),
        }

    with Sandbox(Limits(session_cpu_s=60)) as sandbox:
        return asyncio.run(measure(sandbox))


def _hidden() -> Path | None:
    """The topmost folder above the interpreter that other users may not enter; None if they may enter all."""
    prefix = Path(sys.base_prefix).resolve()
    return next((folder for folder in reversed([prefix, *prefix.parents]) if not folder.stat().st_mode & 1), None)


def in_another_process(user: int, namespaces: bool, mount_point: Path) -> dict[str, object]:
    command = [sys.executable, __file__, "--case", f"{user}", "namespaces" if namespaces else "bare"]
    if user != os.getuid() and (hidden := _hidden()):
        prefix = str(Path(sys.base_prefix).resolve())
        wrapped = ["sh", "-c", REACHABLE, "sh", str(hidden), prefix, str(mount_point)]
        command = ["unshare", "--mount", "--propagation", "private", *wrapped, *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, cwd="/")
    if done.returncode:
        raise RuntimeError(f"the case of user {user} ended with {done.returncode}")
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(int(options.case[0]), options.case[1] == "namespaces")))
        return
    users = [0, NOBODY] if os.getuid() == 0 else [os.getuid()]
    figures: dict[str, object] = {"benchmark": "sandbox", "tried": 0, "escapes": 0}
    cases, missed = {}, [] if os.getuid() == 0 else ["root", "nobody"]
    mount_point = Path(tempfile.mkdtemp(prefix="moonflow-interpreter-"))
    try:
        for user in users:
            for namespaces in (True, False):
                name = f"{user}, {'with' if namespaces else 'without'} namespaces"
                cases[name] = told = in_another_process(user, namespaces, mount_point)
                if not options.json:
                    escapes: list[str] = told["escapes"]  # type: ignore[assignment]
                    print(f"user {name}: {told['tried']} tried, {len(escapes)} escapes; {told['isolation']}")
                    for escape in escapes:
                        print(f"  {escape}")
    finally:
        mount_point.rmdir()  # it was a mount point in another namespace only: here it is an empty folder
    figures["tried"] = sum(int(str(each["tried"])) for each in cases.values())
    figures["escapes"] = sum(len(each["escapes"]) for each in cases.values())  # type: ignore[arg-type]
    figures |= speed() | {"cases": cases}
    if missed:
        figures["not_measured"] = f"the cases of {' and '.join(missed)}: run as root"
    if options.json:
        print(json.dumps(figures))
        return
    for name in ("tried", "escapes", "executions_per_s", "sessions_per_s", "not_measured"):
        if name in figures:
            print(f"{name}: {figures[name]}")


if __name__ == "__main__":
    main()
