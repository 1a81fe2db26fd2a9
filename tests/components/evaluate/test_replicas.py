"""An evaluation whose episodes run on SGLang replicas: each checkpoint is given to them before it is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.runtime.step import run_step
from components.runtime.store.open_store import open_store
from tests.published import publish_output
from tests.sglang_replica import SGLangReplica
from tests.tiny_folders import write_checkpoint, write_data_folder

CHEAP = {"samples": 2, "samples_intermediate": 2, "well_formed": 0.0, "floors": "", "champion": ""}


def test_every_checkpoint_is_pushed_and_videos_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "remote")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder, store = write_data_folder(tmp_path / "data", 2), open_store()
    index = json.loads((folder / "index.json").read_text())
    index["families"] = {name: index["families"][name] for name in ("digit_string", "wide_search", "video_digits")}
    (folder / "index.json").write_text(json.dumps(index))
    data = publish_output(store, folder, "remote", "prepare_data", kind="data")
    checkpoint = write_checkpoint(tmp_path / "parl", seed=1)  # other weights than those of the untrained model
    parl = publish_output(store, checkpoint, "remote", "parl")
    with SGLangReplica(checkpoint) as replica, SGLangReplica(checkpoint) as helper:
        config = {**CHEAP, "engine": "sglang", "endpoints": replica.url, "sub_agent_endpoints": helper.url}
        output = run_step("evaluate", config, {"data": data.uri, "parl": parl.uri})
    rows = {(row["step"], row["suite"]) for row in output.extra["evals"]}
    suites = {"digit_string", "wide_search_single", "wide_search_swarm"}
    assert rows == {(step, suite) for step in ("init", "parl") for suite in suites}
    assert replica.pushes == 2 and helper.pushes == 1  # untrained and trained; the frozen sub-agents once
    assert len({answer.version for answer in replica.served}) == 2
    assert output.extra["warnings"] == ["engine 'sglang' takes no videos: video_digits are not measured"]
    assert not [file.name for file in output.files if file.name.endswith(".safetensors")]
