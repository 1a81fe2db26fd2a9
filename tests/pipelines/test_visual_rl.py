"""The DAG of RL on images and fine-tuning on its successes, its profile, and a whole run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.runtime.steps import IMPORTED, PIPELINES
from model.boundary.errors import MoonflowError
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.tiny_folders import write_checkpoint

TRAINED = ["zero_vision_sft", "visual_rl", "rejection_sft"]


def test_successes_come_from_rl_on_images_and_every_checkpoint_is_evaluated() -> None:
    tasks = shipped.tasks_of(shipped.compiled("visual-rl")[0])
    assert set(tasks) == set(PIPELINES["visual_rl"]) == {IMPORTED, "prepare_data", *TRAINED, "evaluate", "finish"}
    made_by = {
        step: {name: given["taskOutputArtifact"]["producerTask"].replace("-", "_") for name, given in artifacts.items()}
        for step, task in tasks.items()
        if (artifacts := task["inputs"].get("artifacts", {}))
    }
    assert made_by["visual_rl"]["parent"] == "zero_vision_sft"
    assert made_by["rejection_sft"] == {"data": "prepare_data", "parent": "visual_rl", "successes": "visual_rl"}
    assert made_by["evaluate"] == {"data": "prepare_data", **{step: step for step in (IMPORTED, *TRAINED)}}


def test_the_profile_refuses_to_keep_nothing_and_other_trajectories_than_the_data_has() -> None:
    for override, told in (
        ("visual_rl.kept_successes=0", "parameter 'kept_successes'.* greater than or equal to 1"),
        ("rejection_sft.mixture=short", "prepare_data.mixture is 'broad', but rejection_sft.mixture is 'short'"),
    ):
        with pytest.raises(MoonflowError, match=told):
            load_profile("visual-rl", [override])


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_whole_run_ends_with_scores_before_and_after(tmp_path: Path) -> None:
    """Long: a minute of CPU, most of it the start of processes. It learns next to nothing."""
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base")
    run_dir, source = tmp_path / "run", ("--set", f"import_checkpoint.source={tmp_path / 'base'}")
    complete(run_dir, *source, profile="visual-rl-smoke", timeout=1500)
    printed = complete(run_dir, *source, profile="visual-rl-smoke", timeout=600)
    assert "rejection_sft: kept" in printed and not processes(run_dir)
    rows = json.loads((run_dir / "summary.json").read_text())["evals"]
    assert list(dict.fromkeys(row["step"] for row in rows)) == [IMPORTED, *TRAINED]
    assert {"text", "image"} <= {row["modality"] for row in rows}
    assert "rejection SFT" in (run_dir / "report.html").read_text()
