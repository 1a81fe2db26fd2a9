"""``moonflow`` in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "pipelines.cli"]


def moonflow(
    *arguments: str, cwd: Path | None = None, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command, from its start to its end."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout, check=False
    )


def start(run_dir: Path, *arguments: str, profile: str = "smoke") -> subprocess.Popen[str]:
    """``moonflow run``, as the leader of a process group of its own."""
    command = [*PROGRAM, "run", "--profile", profile, "--run-dir", str(run_dir), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def complete(run_dir: Path, *arguments: str, profile: str = "smoke", timeout: float = 540) -> str:
    """Run to the end; returns what was printed."""
    process = start(run_dir, *arguments, profile=profile)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()  # what it started notices and ends as well
    log = run_dir / "logs" / "pipeline.log"
    assert process.returncode == 0, f"{err}\n{out}\n{log.read_text()[-5000:] if log.exists() else ''}"
    return out


def processes(run_dir: Path) -> list[str]:
    """Command lines of everything alive that was started for ``run_dir``, told by arguments and environment."""
    mark = str(run_dir).encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes()
            if text and (mark in text or mark in (entry / "environ").read_bytes()):
                found.append(text.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
