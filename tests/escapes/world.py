"""The surroundings of a sandbox, and whether a program had an effect on them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil

from model.rl.tools.sandbox import Limits, Sandbox
from tests.escapes.programs import CHECKED, UNCHECKED
from tests.waiting import happens

LIMITS = Limits(cell_cpu_s=0.3, session_cpu_s=1, wall_s=30, memory_mb=128)
GONE_S = 5.0  # in which a killed process is reaped, on a busy machine


class UncheckedSandbox(Sandbox):
    """A sandbox without the check of the language."""

    module = "tests.escapes.unchecked"


class World:
    """Files, listeners, memory and signals of this process that a program might reach."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        self.name = f"moonflow-escape-{secrets.token_hex(4)}"
        self.folder = folder / "open"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        (self.folder / "empty").mkdir()
        for name, mode in (("secret", 0o600), ("readable", 0o644)):
            (self.folder / name).write_text(self.token)
            (self.folder / name).chmod(mode)
        self._files = self._listing()
        self._stack = ExitStack()
        self._heard: list[str] = []
        address = "127.0.0.1", 0
        self._tcp = self._listen(socket.AF_INET, socket.SOCK_STREAM, address)
        port = self._tcp.getsockname()[1]
        self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", port))
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.name}")
        self._memory = ctypes.create_string_buffer(self.token[::-1].encode())
        self._key = int.from_bytes(secrets.token_bytes(3))
        previous = signal.signal(signal.SIGUSR1, lambda *_: self._heard.append("a signal"))
        self._stack.callback(signal.signal, signal.SIGUSR1, previous)
        self.names = {
            "secret": str(self.folder / "secret"),
            "readable": str(self.folder / "readable"),
            "folder": str(self.folder),
            "port": port,
            "path": str(folder / "socket"),
            "abstract": self.name,
            "client": os.getpid(),
            "address": ctypes.addressof(self._memory),
            "size": len(self.token),
            "key": self._key,
            "name": self.name,
        }

    def _listen(self, family: int, kind: int, address: object) -> socket.socket:
        made = self._stack.enter_context(socket.socket(family, kind))
        made.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            made.listen()

        def hear() -> None:
            while True:
                try:
                    made.accept() if kind == socket.SOCK_STREAM else made.recv(9)
                except OSError:
                    return
                self._heard.append(f"a message to {address!r}")

        threading.Thread(target=hear, daemon=True).start()
        return made

    def _listing(self) -> dict[str, tuple[int, int, int, str]]:
        found = {}
        for path in sorted(self.folder.iterdir()):
            about = path.stat()
            text = path.read_text() if path.is_file() else ""
            found[path.name] = (about.st_mode, about.st_uid, about.st_mtime_ns, text)
        return found

    def effects(self, output: str) -> list[str]:
        """What a program did outside of its session, as seen from here or as the program says."""
        found = list(self._heard)
        self._heard.clear()
        if self.token in output or self.token[::-1] in output or "root:x:0" in output:
            found.append("read foreign data")
        if "ESCAPED" in output:
            found.append(output.strip().splitlines()[-1])
        if (files := self._listing()) != self._files:
            found.append("changed files")
            self._files = files
        if self._memory.value != self.token[::-1].encode():
            found.append("changed the trainer's memory")
            self._memory.value = self.token[::-1].encode()
        for kind in ("shm", "sem", "msg"):
            rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
            if str(self._key) in {row.split()[0] for row in rows}:
                found.append(f"left System V {kind}")
        if Path(f"/dev/shm/{self.name}").exists():
            found.append("left shared memory")
        return found

    def close(self) -> None:
        self._stack.close()


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="moonflow-escapes-") as name:
        Path(name).chmod(0o755)
        made = World(Path(name))
        try:
            yield made
        finally:
            made.close()


def outlived(processes: Callable[[], list[psutil.Process]]) -> bool:
    """Whether a session's process is left: more than the server and its parent in the outer namespace."""
    return not happens(lambda: len(processes()) <= 2, GONE_S, pause=0.005)


def attack(
    target: World, checked: Mapping[str, str] = CHECKED, unchecked: Mapping[str, str] = UNCHECKED
) -> tuple[int, list[str]]:
    """Run every program, each in a separate session: (number tried, the escapes in one line each)."""
    escapes, tried = [], 0
    assign = "\n".join(f"{name} = {value!r}" for name, value in target.names.items())

    async def run(sandbox: Sandbox, code: str) -> str:
        async with sandbox.session(np.ones((4, 4), np.uint8)) as session:
            await session.run(assign)
            return await session.run(code)

    others = set(psutil.Process().children(recursive=True))

    def ours() -> list[psutil.Process]:
        return [each for each in psutil.Process().children(recursive=True) if each not in others]

    for way, kind, programs in (("checked", Sandbox, checked), ("unchecked", UncheckedSandbox, unchecked)):
        with kind(LIMITS) as sandbox:
            for name, code in programs.items():
                output = asyncio.run(run(sandbox, code))
                effects = target.effects(output)
                if outlived(ours):
                    effects.append("a process outlived its session")
                tried += 1
                escapes += [f"{way}: {name}: {effect}" for effect in effects]
        effects = target.effects("")  # effects that come late
        escapes += [f"{way}: after the last: {effect}" for effect in effects]
    return tried, escapes
