"""Fixtures for tests that need a real object store and a real MLflow: one pair a session, one run id a test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.network.operations import choice
from pipelines.services import Services
from tests.counted import Stage, modules
from tests.golden.comparison import differences, write
from tests.settings import bare_environment

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-golden", action="store_true", help="write the files of tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``golden(name, figures)``: the figures are those that are recorded in ``tests/golden/<name>.json``."""

    def check(name: str, figures: object, rel: float = 1e-3, near_zero: float = 1e-5) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.json"
        if request.config.getoption("--record-golden"):
            write(path, figures)
        assert list(differences(figures, json.loads(path.read_text()), rel, near_zero)) == []

    return check


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both servers in a folder of their own; ``services.environment`` points a step at them."""
    with Services.start(tmp_path_factory.mktemp("services")) as started:
        yield started


@pytest.fixture(scope="session")
def store(services: Services) -> ObjectStore:
    return open_store(services.environment)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, to be copied: making them takes seconds."""
    from mlflow import MlflowClient  # seconds, which most runs of a few files do not need

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def own_mlflow(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow of this test's, without a server, which the environment names too."""
    address = f"sqlite:///{shutil.copy(empty_mlflow, tmp_path)}"
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - bare_environment().keys():
        monkeypatch.delenv(name)


@pytest.fixture
def step_environment(services: Services, no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that ``run_step`` reads, with a run folder and a run id of this test; returns the run id."""
    run_id = f"test-{uuid.uuid4().hex[:8]}"
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


@pytest.fixture
def float_is_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is float32 whatever the weights are becomes float64: what differs then is no rounding."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.fixture(params=["kernels", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What surrounds the products by compiled kernels, and by torch's operators as on an accelerator."""
    if request.param == "torch":
        monkeypatch.setattr(choice, "kernels_take", lambda *_: False)
