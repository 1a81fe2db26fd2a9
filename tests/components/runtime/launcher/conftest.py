from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import components
from components.prepare_data.config import Config
from components.runtime.launcher.api_server import Patience
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.trainjob import run
from components.runtime.launcher.work import StepWork
from tests.components.runtime.launcher.crd import validate_train_job
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.script import Script
from tests.manifests import schemas

QUICK = Patience(watch=1.0, backoff=0.02, backoff_max=0.1, outage=1.5, unstartable=0.3, gone=5.0, stop=2.0)

COUNTED = {
    "__init__.py": "",
    "config.py": """
from pydantic import Field
from components.runtime.config import StepConfig

class Config(StepConfig):
    steps: int = Field(4, description="numbers to count (source: ours)")
    seconds: float = Field(0.0, description="between two numbers (source: ours)")
""",
    "stage.py": '''
"""A stage in the trainers' form: it counts and saves each second number."""
import json
import time

def run(config, inputs, context):
    start = 0
    if (latest := context.checkpoints.latest()) is not None:
        start = json.loads((latest / "training_state.json").read_text())["loop"]
    for done in range(start + 1, config.steps + 1):
        print(f"counted {done}", flush=True)
        if done % 2 == 0 or done == config.steps:
            folder = context.work / str(done)
            folder.mkdir()
            (folder / "training_state.json").write_text(json.dumps({"loop": done}))
            index = context.checkpoints.next_index
            complete = done == config.steps
            context.checkpoints.prepare(index=index, tokens_seen=done, complete=complete).publish(folder)
        time.sleep(config.seconds)
    return context.checkpoints.newest
''',
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster without jobs, which the kubeconfig names."""
    cluster = FakeCluster()
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path)))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    return Cluster.connect(QUICK)


@pytest.fixture
def work() -> StepWork:
    return StepWork("run-1", "prepare_data", Config(), {})


@pytest.fixture
def placement() -> Placement:
    return Placement.parse({"launcher": "trainjob", "image": "moonflow-train:0.1.0", "queue": "train"}, "test")


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A step ``counted`` of the test's own, here and in each process started with the environment returned."""
    folder = tmp_path / "steps"
    for name, text in COUNTED.items():
        (folder / "counted").mkdir(parents=True, exist_ok=True)
        (folder / "counted" / name).write_text(text)
    (folder / "sitecustomize.py").write_text(f"import components\ncomponents.__path__.append({str(folder)!r})\n")
    monkeypatch.setattr(components, "__path__", [*components.__path__, str(folder)])
    root = Path(components.__file__).parents[1]
    return {"PYTHONPATH": f"{folder}:{root}"}


@pytest.fixture
def launched(fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement) -> Callable[..., None]:
    """Run the work while the cluster follows a script; the step's manifest exists unless ``left`` says otherwise."""

    def launch(script: Script | None = None, *, left: bool = True) -> None:
        if schemas.FOLDER.is_dir():
            fake.validate = validate_train_job
        if script is not None:
            fake.on_create = lambda fake, job: script(fake)
        run(work, placement, lambda: left, cluster)

    return launch
