"""IPython-style programs of a policy, run out of process. What confines them, and what does not: `sandbox_server`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from model.errors import MoonflowError

_START_S = 60.0  # for a session to begin on an overloaded machine


@dataclass(frozen=True)
class Limits:
    """Of one session (values: ours).

    Attributes:
        cell_cpu_s: processor seconds of a cell, after which it gets a TimeoutError. Not wall-clock seconds: what an
            episode observes must not depend on how busy the machine is.
        session_cpu_s: processor seconds of all cells together, after which the session is killed.
        wall_s: seconds of a cell, after which the session is killed; only for what blocks without computing.
        memory_mb: MiB above what the idle session has.
        output_chars: characters of a cell's output that are kept.
    """

    cell_cpu_s: float = 1.0
    session_cpu_s: float = 4.0
    wall_s: float = 60.0
    memory_mb: int = 256
    output_chars: int = 400


class Session:
    """One kernel: names persist from cell to cell. Made by `Sandbox.session`; use as an async context manager."""

    def __init__(self, path: str, limits: Limits, array: np.ndarray | None) -> None:
        self._path, self._limits, self._array = path, limits, array
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Session:
        self._streams = await asyncio.open_unix_connection(self._path)
        first: dict[str, object] = {}
        if self._array is not None:
            data = base64.b64encode(np.ascontiguousarray(self._array, np.uint8).tobytes()).decode()
            first = {"shape": list(self._array.shape), "data": data}
        try:
            async with asyncio.timeout(_START_S):
                await self._exchange(first)
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            self._hang_up()
            raise MoonflowError("a sandbox session did not start; see the sandbox server's stderr") from error
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up()

    async def run(self, code: str) -> str:
        """What the cell printed and the value of its last expression, or the last line of its traceback."""
        if self._streams is None:
            return "RuntimeError: the session is dead"
        try:
            async with asyncio.timeout(self._limits.wall_s):
                return str((await self._exchange({"code": code}))["output"])
        except TimeoutError:
            self._hang_up()
            return "TimeoutError: the cell ran too long, the session is dead"
        except (asyncio.IncompleteReadError, OSError):
            self._hang_up()
            return "RuntimeError: out of processor time or memory, the session is dead"

    async def _exchange(self, frame: dict[str, object]) -> dict[str, object]:
        assert self._streams is not None
        reader, writer = self._streams
        body = json.dumps(frame).encode()
        writer.write(struct.pack(">I", len(body)) + body)
        size = struct.unpack(">I", await reader.readexactly(4))[0]
        answer: dict[str, object] = json.loads(await reader.readexactly(size))
        return answer

    def _hang_up(self) -> None:
        """The server kills the session's process as soon as the connection is closed."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class Sandbox:
    """The server process; started at the first session, ended by `close` or with this process."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._lock = threading.Lock()

    def session(self, array: np.ndarray | None = None) -> Session:
        """A new kernel in which ``img`` is ``array`` (uint8 [H, W]). Raises MoonflowError if no server starts."""
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._start()
        return Session(f"{self._folder}/socket", self.limits, array)

    def close(self) -> None:
        if self._server is not None and self._server.stdin and self._server.stdout:
            self._server.stdin.close()  # the server ends with its standard input, and every session with it
            self._server.wait(timeout=10)
            self._server.stdout.close()
            self._server = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="moonflow-sandbox-")
        environment = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        program = Path(__file__).with_name("sandbox_server.py")
        self._server = subprocess.Popen(
            [sys.executable, "-I", str(program), f"{self._folder}/socket", json.dumps(asdict(self.limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,  # nothing of ours, credentials least of all
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise MoonflowError(f"the sandbox server did not start (exit status {self._server.wait()}); see its stderr")
