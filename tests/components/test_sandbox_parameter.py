from __future__ import annotations

from pathlib import Path

import pytest

from components.outcome_rl import training
from components.runtime.steps import ALL_STEPS, config_class, stage_of
from tests.step_services import FolderServices

TOOLLESS = {"toggle_arm"}  # its families declare no tools, so its model can run nothing


def test_the_page_on_what_runs_where_names_every_step_that_runs_programs_of_a_model() -> None:
    page = (Path(__file__).resolve().parents[2] / "manifests/README.md").read_text()
    section = page.partition("## What runs where")[2].partition("\n## ")[0]
    running = {step for step in ALL_STEPS if "sandbox" in config_class(step).model_fields} - TOOLLESS
    assert (
        {step for step in ALL_STEPS if f"`{step}`" in section}
        >= running
        > {"visual_rl", "joint_rl", "parl", "evaluate"}
    )


class Asked(Exception):
    pass


@pytest.mark.parametrize("sandbox", ["strict", "unsafe"])
@pytest.mark.parametrize("step", ["visual_rl", "joint_rl", "parl"])
def test_the_parameter_sandbox_reaches_the_tools(
    step: str, sandbox: str, rl_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tools(*, sandbox: str) -> None:
        raise Asked(sandbox)

    stage = stage_of(step)
    monkeypatch.setattr(training if step in ("visual_rl", "joint_rl") else stage, "Toolset", tools)
    with pytest.raises(Asked, match=sandbox):
        stage.run(config_class(step)(sandbox=sandbox), rl_inputs, FolderServices(tmp_path))
