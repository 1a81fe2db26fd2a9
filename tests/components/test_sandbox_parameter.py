from __future__ import annotations

from pathlib import Path

import pytest

from components.runtime.steps import config_class, stage_of
from tests.step_services import FolderServices


class Asked(Exception):
    pass


@pytest.mark.parametrize("sandbox", ["strict", "unsafe"])
@pytest.mark.parametrize("step", ["joint_rl", "parl"])
def test_the_parameter_sandbox_reaches_the_tools(
    step: str, sandbox: str, rl_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tools(*, sandbox: str) -> None:
        raise Asked(sandbox)

    stage = stage_of(step)
    monkeypatch.setattr(stage, "Toolset", tools)
    with pytest.raises(Asked, match=sandbox):
        stage.run(config_class(step)(sandbox=sandbox), rl_inputs, FolderServices(tmp_path))
