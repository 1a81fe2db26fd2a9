from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def start(run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """``moonflow run`` on the smoke profile, as the leader of a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        "--profile",
        "smoke",
        "--run-dir",
        str(run_dir),
        *arguments,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def complete(run_dir: Path, *arguments: str) -> str:
    """Run to the end; returns what was printed."""
    process = start(run_dir, *arguments)
    try:
        out, err = process.communicate(timeout=540)
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


@pytest.fixture(scope="session")
def smoke_run(
    tmp_path_factory: pytest.TempPathFactory, record_testsuite_property: Callable[[str, object], None]
) -> tuple[Path, str]:
    """(run folder, what was printed) of one whole, undisturbed smoke run; its seconds go into --junit-xml."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    began = time.monotonic()
    printed = complete(run_dir)
    seconds = round(time.monotonic() - began, 1)
    record_testsuite_property("smoke_run_seconds", seconds)
    print(f"the smoke run took {seconds} s")
    return run_dir, printed
