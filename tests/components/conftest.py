from __future__ import annotations

from pathlib import Path

import pytest

from components.runtime.checkpoints.manifest import describe
from model.network.config import preset
from model.network.initial import new_model
from tests.components.release.git_server import TOKEN
from tests.published import manifest_of
from tests.rl.conftest import data_folder
from tests.tiny_folders import write_checkpoint
from tests.training import save_checkpoint

__all__ = ["data_folder"]  # the tasks that the tests of model/rl train on


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights and their manifest, as it is served; shared by the tests of release and serve."""
    folder = write_checkpoint(tmp_path_factory.mktemp("serve") / "checkpoint")
    manifest = manifest_of("parl", run_id="run", files=(describe(path, folder) for path in sorted(folder.iterdir())))
    (folder / "manifest.json").write_bytes(manifest.canonical())
    return folder


@pytest.fixture(scope="session")
def rl_inputs(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The inputs of joint RL and of PARL: tasks, and one fresh tiny model as every checkpoint."""
    folder = tmp_path_factory.mktemp("parent")
    save_checkpoint(folder, new_model(preset("tiny"), seed=5), data_folder, None, {})
    return {"data": str(data_folder), **dict.fromkeys(("parent", "policy", "sub_agents"), str(folder))}


@pytest.fixture
def git_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that a ``git_host`` asks for, and no proxy on the way to it."""
    monkeypatch.setenv("MOONFLOW_GIT_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
