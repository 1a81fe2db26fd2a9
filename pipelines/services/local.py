"""Start, keep and stop the object store (SeaweedFS) and MLflow of one run folder.

The run folder holds ``store/`` (objects), ``mlflow.db``, ``credentials.json`` and ``s3.json`` (mode 0600), ``signing/``
(the key pair of what is promoted), ``services.json`` (ports, who runs them), ``services.lock`` and
``logs/{store,mlflow}.log``.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from components.release import signing
from components.runtime.store.object_store import disk_errors
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.services.commands import BUCKET, MARK, mlflow_command, store_command
from pipelines.services.credentials import credentials
from pipelines.services.ports import PORTS, choose, free, remove_sockets, unix_sockets

REPOSITORY = "gitops.git"  # in the run folder
_STARTS = 5
_STORE_S = 30.0
_MLFLOW_S = 90.0
_STOP_S = 10.0


class _PortTaken(Exception):
    """Another process bound one of the ports between our choice and the service's start."""


class Services:
    """The running services of ``run_dir``; a context manager that stops them, or leaves them running if ``keep``."""

    def __init__(self, run_dir: Path, keep: bool, lock: IO[str]) -> None:
        self.run_dir = run_dir
        self.keep = keep
        self.seconds: dict[str, float] = {}
        self._lock = lock
        self._credentials = credentials(run_dir)
        self._signing = signing.key_pair(run_dir / "signing")
        self._ports: dict[str, int] = {}
        self._supervisor: subprocess.Popen[str] | None = None

    @classmethod
    def start(cls, run_dir: Path, *, keep: bool = False) -> Services:
        """Start both services and wait until they answer; kept ones of an earlier run are replaced.

        Raises:
            MoonflowError: another run uses the folder, the disk is full, or a service does not come up (with the
                last lines of its log).
        """
        run_dir = run_dir.resolve()
        with _writing(run_dir):
            for folder in ("store", "logs", "work"):
                (run_dir / folder).mkdir(parents=True, exist_ok=True)
            lock = _acquire(run_dir)
            services = cls(run_dir, keep, lock)
        try:
            _end_strays(run_dir)
            for attempt in range(_STARTS):
                try:
                    with _writing(run_dir):
                        services._launch(services._choose_ports(fresh=attempt > 0))
                    return services
                except _PortTaken as taken:
                    services._end()
                    problem = taken
            raise MoonflowError(f"no free ports for the services after {_STARTS} attempts ({problem})")
        except BaseException:
            services.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a step at these services."""
        return _environment(self.run_dir, self._credentials, self._signing, self._url("s3"), self._url("mlflow"))

    @property
    def alive(self) -> bool:
        """Whether both services run: if one ends, the other is ended as well."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def stop(self) -> None:
        """End the services and release the run folder; no process is left when it returns."""
        self._end()
        (self.run_dir / "services.json").unlink(missing_ok=True)
        self._lock.close()

    def detach(self) -> None:
        """Leave the services running after this process; ``stop_kept`` or ``moonflow clean`` ends them."""
        if self._supervisor is None or self._supervisor.stdin is None:
            raise RuntimeError("services are not running")
        self._write_state(kept=True)
        self._supervisor.stdin.write("keep\n")
        self._supervisor.stdin.flush()
        self._supervisor.stdin.close()
        self._supervisor.returncode = 0  # no longer ours: no ResourceWarning about a running child
        self._supervisor = None
        self._lock.close()  # the supervisor holds the same lock on

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.keep and kind is None:
            self.detach()
        else:
            self.stop()

    def _launch(self, ports: dict[str, int]) -> None:
        self._ports = ports
        began = time.monotonic()
        commands = [
            store_command(self.run_dir, ports, self._credentials),
            mlflow_command(self.run_dir, ports, self._credentials),
        ]
        logs = {command["name"]: Path(command["log"]) for command in commands}
        for path in logs.values():
            path.unlink(missing_ok=True)
        with (self.run_dir / "logs" / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("supervisor.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, MARK: str(self.run_dir)},
                text=True,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,  # Ctrl-C reaches the CLI alone, which then stops the services in order
            )
        assert self._supervisor.stdin is not None and self._supervisor.stdout is not None
        sockets = [str(path) for path in unix_sockets(ports)]
        self._supervisor.stdin.write(json.dumps({"commands": commands, "remove": sockets}) + "\n")
        self._supervisor.stdin.flush()
        for _ in commands:
            self._supervisor.stdout.readline()
        self._supervisor.stdout.close()
        self._write_state(kept=False)
        self._wait("object store", logs["store"], began + _STORE_S, self._store_ready)
        self.seconds["store"] = time.monotonic() - began
        self._wait("MLflow", logs["mlflow"], began + _MLFLOW_S, self._mlflow_ready)
        self.seconds["mlflow"] = time.monotonic() - began

    def _choose_ports(self, fresh: bool) -> dict[str, int]:
        """The ports of this folder's last start if they are still free, so that addresses stay; else new ones."""
        last = _read_state(self.run_dir / "ports.json")
        if not fresh and set(last) == set(PORTS) and free(last):
            return last
        chosen = choose()
        (self.run_dir / "ports.json").write_text(json.dumps(chosen))
        return chosen

    def _wait(self, name: str, log: Path, deadline: float, ready: Callable[[], bool]) -> None:
        while not ready():
            assert self._supervisor is not None
            ended = self._supervisor.poll() is not None
            if ended and _says_port_taken(log):
                raise _PortTaken(_tail(log, 1))
            if ended or time.monotonic() > deadline:
                what = "ended at its start" if ended else "does not answer"
                raise MoonflowError(f"{name} {what}; the last lines of {log}: {_tail(log, 4)}")
            time.sleep(0.05)

    def _store_ready(self) -> bool:
        return _store_answers(self.environment)

    def _mlflow_ready(self) -> bool:
        return _answers(self._url("mlflow") + "/health")

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def _write_state(self, *, kept: bool) -> None:
        assert self._supervisor is not None
        state = {"supervisor": self._supervisor.pid, "kept": kept, "mlflow": self._url("mlflow"), "s3": self._url("s3")}
        (self.run_dir / "services.json").write_text(json.dumps(state))

    def _end(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.terminate()
        try:
            supervisor.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
        if supervisor.stdin is not None:
            supervisor.stdin.close()
        _end_strays(self.run_dir)


def _environment(
    run_dir: Path, credentials: tuple[str, str], key_pair: tuple[Path, Path], s3: str, mlflow: str
) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": s3,
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_REGION": "us-east-1",
        "MOONFLOW_STORE": f"s3://{BUCKET}/runs",
        "MOONFLOW_RUN_DIR": str(run_dir),
        "MOONFLOW_GITOPS_REPO": str(run_dir / REPOSITORY),
        signing.KEY: str(key_pair[0]),
        signing.PUBLIC_KEY: str(key_pair[1]),
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_EXPERIMENT_NAME": "moonflow",
    }


@contextmanager
def exported(environment: Mapping[str, str]) -> Iterator[None]:
    """Run the body with these variables in this process's environment, which is as before afterwards."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def visited(run_dir: Path) -> Iterator[dict[str, str]]:
    """The ``Services.environment`` of a folder while the body runs: of its kept services, which go on afterwards, or of
    new ones, which end then.

    Raises:
        MoonflowError: as ``Services.start``.
    """
    if (environment := _kept_environment(run_dir.resolve())) is not None:
        yield environment
        return
    with Services.start(run_dir) as services:
        yield services.environment


def _kept_environment(run_dir: Path) -> dict[str, str] | None:
    """What points at the services that an earlier run kept; None if there are none that answer."""
    state = _read_state(run_dir / "services.json")
    if not state.get("kept"):
        return None
    key_pair = signing.key_pair(run_dir / "signing")
    environment = _environment(run_dir, credentials(run_dir), key_pair, state["s3"], state["mlflow"])
    return environment if _store_answers(environment) else None


def _store_answers(environment: Mapping[str, str]) -> bool:
    if not _answers(environment["AWS_ENDPOINT_URL_S3"] + "/healthz"):
        return False
    try:
        # With our credentials, which any other server on this port would refuse.
        open_store(environment).check()
    except MoonflowError:
        return False
    return True


@contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    """Turn the error about a folder that cannot be written into one line."""
    try:
        with disk_errors(run_dir):
            yield
    except OSError as error:
        raise MoonflowError(
            f"cannot write to {run_dir}: {error.strerror}; make it writable, or give another run folder"
        ) from error


def stop_kept(run_dir: Path) -> bool:
    """End the services that an earlier run left with ``keep``; False if there are none."""
    run_dir = run_dir.resolve()
    state = _read_state(run_dir / "services.json")
    if not state.get("kept"):
        return False
    stopped = bool(_end_strays(run_dir, supervisor=int(state["supervisor"])))
    (run_dir / "services.json").unlink(missing_ok=True)
    return stopped


def _acquire(run_dir: Path) -> IO[str]:
    """The folder's lock, inherited by the supervisor: it is held as long as anything of this folder runs."""
    lock = (run_dir / "services.lock").open("a")
    for last in (False, True):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if last or not stop_kept(run_dir):
                break
    lock.close()
    raise MoonflowError(f"{run_dir} is in use by another moonflow run: wait for it, or give another run folder")


def _end_strays(run_dir: Path, supervisor: int = 0) -> list[int]:
    """Stop the service processes of ``run_dir`` that this process does not own; returns their ids.

    The supervisor, if given, is asked first, and stops the others in order. Then what a SIGKILL left is ended, and the
    folder's sockets are removed, unless another run has its ports by now.
    """
    found = service_processes(run_dir)
    if supervisor in found:
        os.kill(supervisor, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while service_processes(run_dir) and time.monotonic() < deadline:
            time.sleep(0.05)
    for pid in service_processes(run_dir):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    ports = _read_state(run_dir / "ports.json")
    if set(ports) == set(PORTS):
        remove_sockets(ports)
    return found


def service_processes(run_dir: Path) -> list[int]:
    """Ids of the living store and MLflow processes of ``run_dir``, found by a mark in their environment."""
    mark = f"{MARK}={run_dir.resolve()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _says_port_taken(log: Path) -> bool:
    text = log.read_text(errors="replace") if log.exists() else ""
    return any(sign in text for sign in ("Port allocation failed", "address already in use", "bind: address"))


def _tail(log: Path, lines: int) -> str:
    text = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return " | ".join(line.strip()[:300] for line in text[-lines:]) or "(empty)"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        return state
    except (OSError, ValueError):
        return {}
