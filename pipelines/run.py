"""A run on this machine: start the services, run the pipeline under kfp.local, show its progress and its result."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live

from components.runtime.store.open_store import for_sources
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole
from model.network.config import preset
from pipelines.compile import compile_ir
from pipelines.dag import AT_ONCE
from pipelines.memory import PeakMemory
from pipelines.preflight import preflight
from pipelines.profile import RESOLVED, Profile, require_same_steps
from pipelines.progress import progress_table, task_state
from pipelines.result import print_result
from pipelines.run_folder import (
    is_run_folder,
    is_seeds_folder,
    resume_command,
    run_folder,
    services_folder,
    temporary_folder,
)
from pipelines.services import REPOSITORY, Services
from pipelines.source_run import fetch_source
from pipelines.worker import LOCK

STOP_SECONDS = 5.0
LOCK_SECONDS = 2.0
"""The worker of a killed run holds the lock for an instant before it ends its own group."""


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's quota: microseconds of CPU time, or max, and the period in microseconds that they are for."""


def cores_of_task(profile: Profile) -> int:
    """Cores that each of the tasks that run at the same time may use."""
    cores = len(os.sched_getaffinity(0))
    if CPU_QUOTA.exists() and (limit := CPU_QUOTA.read_text().split())[0] != "max":
        cores = min(cores, -(-int(limit[0]) // int(limit[1])))
    loops = [len(profile.cells(name)) for name, step in profile.steps.items() if step.looped]
    return max(1, cores // min(AT_ONCE, *loops)) if loops else cores


def run_locally(profile: Profile, run_dir: Path, *, keep: bool, console: Console) -> None:
    """Run the pipeline in ``run_dir``, or continue it there; returns when every process that it started has ended.

    A call for the same folder does not repeat finished steps. ``keep`` leaves the services running.
    Raises MoonflowError with the failed step's line, or, before anything is written, if the folder's run has other
    steps.
    """
    require_local(profile)
    run_dir = run_folder(run_dir)
    if services_folder(run_dir) != run_dir or is_seeds_folder(run_dir):
        raise MoonflowError(f"{run_dir} belongs to moonflow seeds: go on with {resume_command(run_dir)}")
    if begun := is_run_folder(run_dir):
        require_same_steps(profile, run_dir)
    preflight(profile, str(run_dir / REPOSITORY), begun=begun)
    started, began = time.time(), time.monotonic()

    # Nothing is written before the lock is held: a refused second run must not touch the first one's files.
    with run_lock(run_dir), stop_on_signal():
        lay_out(profile, run_dir, profile.run.name)
        source = fetch_source(profile, run_dir, console)
        with PeakMemory() as memory, start_services(run_dir, console, keep=keep) as services:
            environment = {**services.environment, **source}
            run_pipeline(profile, run_dir, profile.run.name, environment, console, started=started, began=began)
            print_result(
                run_dir,
                console,
                services.environment,
                profile.task_names,
                keep=keep,
                seconds=time.monotonic() - began,
                services_s=max(services.seconds.values()),
                peak_bytes=memory.bytes,
            )


def require_local(profile: Profile) -> None:
    """Raise MoonflowError for a profile that cannot run on this machine."""
    if profile.run.preset:
        preset(profile.run.preset)  # raises for a wrong preset now, not after the data is made
    if remote := [step for step, placement in profile.tasks.items() if placement.launcher == "trainjob"]:
        raise MoonflowError(
            f"profile {profile.run.name} asks for TrainJobs ({', '.join(remote)}), which need a cluster: "
            "use moonflow submit, or another profile"
        )
    profile.require_parallel()


def lay_out(profile: Profile, run_dir: Path, run_id: str) -> None:
    """Make a run's folder: folders, the resolved profile, the compiled pipeline and its argument. Needs its lock."""
    with writing(run_dir):
        for folder in ("logs", "progress", "tasks", "work"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a full disk must not leave a run whose steps cannot be read.
        write_whole(run_dir / RESOLVED, profile.as_toml().encode())
        compile_ir(profile, run_dir / "pipeline.yaml")
        (run_dir / "arguments.json").write_text(json.dumps({"p00_run_id": run_id}))


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn the error about a folder that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        raise MoonflowError(
            f"cannot write to {run_dir}: {error.strerror}; make room, or give another --run-dir"
        ) from error


def run_pipeline(
    profile: Profile,
    run_dir: Path,
    run_id: str,
    environment: Mapping[str, str],
    console: Console,
    *,
    started: float,
    began: float,
) -> None:
    """Run the pipeline that ``lay_out`` has written, under the run's lock, and show its progress.

    Args:
        run_id: the run's folder in the store and its name in MLflow.
        environment: the variables that point the steps at the services.
        started, began: when this call of the run began, in Unix seconds and on the monotonic clock.

    Raises:
        MoonflowError: a step failed; the message is that step's line.
    """
    names = profile.task_names
    with temporary_folder(run_dir) as temporary:
        for step in names:
            (run_dir / "tasks" / f"{step}.json").unlink(missing_ok=True)
        given = {
            **os.environ,
            **for_sources(os.environ),  # a user's own buckets are not in the run's store
            **environment,
            "MOONFLOW_RUN_DIR": str(run_dir),
            "MOONFLOW_RUN_ID": run_id,
            "MOONFLOW_PROFILE": profile.run.name,
            "MOONFLOW_STARTED": str(started),
            "TMPDIR": str(temporary),  # where kfp leaves a folder for every task
            "PYTHONUNBUFFERED": "1",
            # Training gives every core some rows of the batch (model.parallel.thread_replicas). OpenMP's threads spin
            # only briefly after their work. If they spun longer, they would take a core from other rows; if they did
            # not spin (OMP_WAIT_POLICY=PASSIVE), a second thread would cost the optimizer more time than it saves.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores_of_task(profile))),
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        }
        with (run_dir / "logs" / "pipeline.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pipelines.worker", str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
            )
        try:
            _watch(worker, run_dir, console, began, names)
        finally:
            end_group(worker)
        _raise_for_failure(run_dir, worker.returncode, names)


def start_services(run_dir: Path, console: Console, *, keep: bool) -> Services:
    """The object store and MLflow of ``run_dir``, started with a word to the user."""
    with console.status("starting the object store and MLflow"):
        return Services.start(run_dir, keep=keep)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, made if it is missing, while the body runs.

    The worker and its steps end when the lock is released.
    """
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        opened = (run_dir / LOCK).open("ab")
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
    """Let SIGTERM and SIGHUP raise, as Ctrl-C does, so that services and steps are stopped."""

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
    """Show the table until the pipeline ends; without a terminal, print a line when a step starts or ends."""
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


def end_group(worker: subprocess.Popen[bytes]) -> None:
    """End the worker's process group: SIGTERM first, SIGKILL if it does not end."""
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(worker.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            worker.poll()  # reap it, or the group never counts as empty
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
            raise MoonflowError(f"{step} stopped without a message: it was killed or hit a bug; see the end of {log}")
    if returncode or task_state(run_dir, "finish").state != "done":
        raise MoonflowError(f"the pipeline ended early (status {returncode}); see the end of {log}")
