"""A run on this machine: services up, the pipeline under kfp.local, a live table, the result. Nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live

from model.config import preset
from model.errors import MoonflowError
from pipelines.compile import compile_ir
from pipelines.fusion_ablation import AT_ONCE
from pipelines.memory import PeakMemory
from pipelines.preflight import preflight
from pipelines.profile import Profile
from pipelines.progress import progress_table, task_state
from pipelines.result import print_result
from pipelines.run_folder import is_run_folder, run_folder, temporary_folder
from pipelines.services import REPOSITORY, Services
from pipelines.worker import LOCK

STOP_SECONDS = 5.0
LOCK_SECONDS = 2.0
"""The worker of a killed run holds the lock for an instant before it ends its own group."""


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's: microseconds of CPU time, or max, in a period of so many; it has as many cores as its machine."""


def _cores(profile: Profile) -> int:
    """Cores for each of the tasks that run at once, of those that this process may use."""
    cores = len(os.sched_getaffinity(0))
    if CPU_QUOTA.exists() and (limit := CPU_QUOTA.read_text().split())[0] != "max":
        cores = min(cores, -(-int(limit[0]) // int(limit[1])))
    return max(1, cores // AT_ONCE) if profile.run.pipeline == "fusion_ablation" else cores


def run_locally(profile: Profile, run_dir: Path, *, keep: bool, console: Console) -> None:
    """Run, or go on with, the pipeline in ``run_dir``; returns when it is done and everything it started is gone.

    A second call with the same folder redoes nothing that is finished. ``keep`` leaves the services running.
    Raises MoonflowError with the failed step's own line.
    """
    preset(profile.run.preset)  # a wrong name is told now, not after the data is made
    if remote := [step for step, placement in profile.tasks.items() if placement.launcher == "trainjob"]:
        raise MoonflowError(
            f"profile {profile.run.name} wants TrainJobs ({', '.join(remote)}), which cannot reach this machine: "
            "use moonflow submit, or another profile"
        )
    profile.require_parallel()
    run_dir = run_folder(run_dir)
    preflight(profile, str(run_dir / REPOSITORY), begun=is_run_folder(run_dir))
    started, began = time.time(), time.monotonic()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room(run_dir, error) from error

    # Nothing is written before the lock is held: a refused second run must not touch the first one's files.
    with run_lock(run_dir), stop_on_signal():
        _lay_out(profile, run_dir)
        _run(profile, run_dir, keep=keep, console=console, started=started, began=began)


def _lay_out(profile: Profile, run_dir: Path) -> None:
    """Folders, the resolved profile and the compiled pipeline."""
    try:
        for folder in ("logs", "progress", "tasks", "work"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        (run_dir / "profile.toml").write_text(profile.as_toml(), encoding="utf-8")
        compile_ir(profile, run_dir / "pipeline.yaml")
        (run_dir / "arguments.json").write_text(json.dumps({"p00_run_id": profile.run.name}))
    except OSError as error:
        raise _no_room(run_dir, error) from error


def _no_room(run_dir: Path, error: OSError) -> MoonflowError:
    return MoonflowError(f"cannot write to {run_dir}: {error.strerror}; make room, or give another --run-dir")


def _run(profile: Profile, run_dir: Path, *, keep: bool, console: Console, started: float, began: float) -> None:
    with (
        PeakMemory() as memory,
        _services(run_dir, console, keep=keep) as services,
        temporary_folder(run_dir) as temporary,
    ):
        names = profile.task_names
        for step in names:
            (run_dir / "tasks" / f"{step}.json").unlink(missing_ok=True)
        environment = {
            **os.environ,
            **services.environment,
            "MOONFLOW_RUN_DIR": str(run_dir),
            "MOONFLOW_RUN_ID": profile.run.name,
            "MOONFLOW_PROFILE": profile.run.name,
            "MOONFLOW_STARTED": str(started),
            "TMPDIR": str(temporary),  # kfp leaves a folder behind for every task
            "PYTHONUNBUFFERED": "1",
            # Training gives every core some rows of the batch (model.train.shares). The threads of operators, the
            # optimizer's above all, spin for an instant only: longer, and they take a core from the next share of rows;
            # not at all (OMP_WAIT_POLICY=PASSIVE), and a second thread costs the optimizer more than it brings.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_cores(profile))),
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        }
        with (run_dir / "logs" / "pipeline.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pipelines.worker", str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            _watch(worker, run_dir, console, began, names)
        finally:
            _end_group(worker)
        _raise_for_failure(run_dir, worker.returncode, names)
        print_result(
            run_dir,
            console,
            services.environment,
            names,
            keep=keep,
            seconds=time.monotonic() - began,
            services_s=max(services.seconds.values()),
            peak_bytes=memory.bytes,
        )


def _services(run_dir: Path, console: Console, *, keep: bool) -> Services:
    with console.status("starting the object store and MLflow"):
        return Services.start(run_dir, keep=keep)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Own the run folder. The worker ends when this lock is released, so it is also the steps' lifeline."""
    try:
        opened = (run_dir / LOCK).open("ab")
    except OSError as error:
        raise _no_room(run_dir, error) from error
    with opened as lock:
        try:
            _lock(lock, LOCK_SECONDS)
        except BlockingIOError:
            raise MoonflowError(
                f"{run_dir} is in use by another moonflow run; wait, or give another --run-dir"
            ) from None
        yield


def _lock(file: IO[bytes], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that services and steps are stopped."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    worker: subprocess.Popen[bytes], run_dir: Path, console: Console, began: float, names: Sequence[str]
) -> None:
    """Show the table until the pipeline ends; without a terminal, one line whenever a step starts or ends."""
    if console.is_terminal:
        table = partial(progress_table, run_dir, began, names)
        with Live(console=console, refresh_per_second=4, get_renderable=table):
            worker.wait()
        return
    shown: dict[str, str] = {}
    while True:
        ended = worker.poll() is not None
        for step in names:
            state = task_state(run_dir, step)
            if state.state != shown.get(step, "waiting"):
                shown[step] = state.state
                seconds = f" in {state.seconds:.1f} s" if state.seconds and state.state != "running" else ""
                console.print(f"{step}: {state.state}{seconds}", highlight=False)
        if ended:
            return
        time.sleep(0.2)


def _end_group(worker: subprocess.Popen[bytes]) -> None:
    """Stop the worker's whole process group: asked first, killed if it does not go."""
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(worker.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            worker.poll()  # reaped, or the group never counts as empty
            try:
                os.killpg(worker.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
    worker.wait()


def _raise_for_failure(run_dir: Path, returncode: int, names: Sequence[str]) -> None:
    """Raise the first failed step's line. kfp.local itself ends with status 0 either way."""
    log = run_dir / "logs" / "pipeline.log"
    for step in names:
        state = task_state(run_dir, step)
        if state.error:
            raise MoonflowError(f"{step}: {state.error}")
        if state.state in ("failed", "running"):
            raise MoonflowError(f"{step} stopped without a message: it was killed or met a bug; see the end of {log}")
    if returncode or task_state(run_dir, "finish").state != "done":
        raise MoonflowError(f"the pipeline ended early (status {returncode}); see the end of {log}")
