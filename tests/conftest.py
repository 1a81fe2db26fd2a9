"""Fixtures for tests that need a real object store and a real MLflow: one pair a session, one run id a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.runtime.store import ObjectStore
from model import moe, precision, reading, target_logprobs
from pipelines.services import Services
from tests.counted import Stage, modules

# A suite that a shell started in its background ignores Ctrl-C and hands that on to what it starts; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of minutes start first, so that no worker is left with one at the end.
FIRST = (
    "pipelines/test_smoke_run.py",
    "pipelines/",
    "faults/",
    "train/",
    "components/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((place for place, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both servers in a folder of their own; ``services.environment`` points a step at them."""
    with Services.start(tmp_path_factory.mktemp("services")) as started:
        yield started


@pytest.fixture(scope="session")
def store(services: Services) -> ObjectStore:
    return ObjectStore.from_env(services.environment)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, to be copied: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def step_environment(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that ``run_step`` reads, with a run folder and a run id of this test; returns the run id."""
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_", "MOONFLOW_"))]:
        monkeypatch.delenv(name)
    own = {"MOONFLOW_RUN_ID": run_id, "MOONFLOW_RUN_DIR": str(tmp_path)}
    for name, value in {**services.environment, **own}.items():
        monkeypatch.setenv(name, value)
    return run_id


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], None]:
    """Make a stage the one of the step ``counted``."""

    def install(run: Stage) -> None:
        for name, module in modules(run).items():
            monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "moonflow", folder], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=["kernels", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What surrounds the products by compiled kernels, and by torch's operators as on an accelerator."""
    if request.param == "torch":
        for module in (moe, precision, reading, target_logprobs):
            monkeypatch.setattr(module, "compiled_for", lambda *_: False)
