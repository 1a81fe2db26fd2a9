from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.evaluate import stage
from components.evaluate.config import Config
from components.finish.stage import history, read_gallery
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import run_step
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.data.families.programs import KINDS
from model.evals.suites import SUITES
from model.rollout.embedded import EmbeddedEngine
from tests.published import publish_output
from tests.tiny_folders import write_checkpoint, write_data_folder


@pytest.mark.parametrize("inputs", [{}, {"import_checkpoint": "s3://bucket/runs/base/mid_train/3"}])
def test_an_evaluation_without_a_trained_checkpoint_is_one_line(inputs: dict[str, str]) -> None:
    with pytest.raises(MoonflowError, match="no checkpoint to measure: give it that of vit_pretrain or"):
        stage.run(Config(), {"data": "s3://bucket/runs/base/prepare_data/0", **inputs}, None)  # type: ignore[arg-type]


def test_the_gallery_and_the_kinds_stay_when_only_the_gate_decides_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model of random weights, on tasks of four kinds of image programs and of a suite without kinds."""
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "r")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("digit_string", "image_program"):
        monkeypatch.setitem(SUITES, name, replace(SUITES[name], max_new_tokens=2))
    folder = write_data_folder(tmp_path / "data", 4)
    index = json.loads((folder / "index.json").read_text())
    index["families"] = {name: index["families"][name] for name in ("digit_string", "image_program")}
    (folder / "index.json").write_text(json.dumps(index))
    store = open_store()
    data = publish_output(store, folder, "r", "prepare_data", kind="data")
    parl = publish_output(store, write_checkpoint(tmp_path / "parl"), "r", "parl")

    def evaluated(floors: str) -> Manifest:
        config = {"samples": 16, "samples_intermediate": 16, "well_formed": 0.0, "sigmas": 100.0, "champion": ""}
        return run_step("evaluate", {**config, "floors": floors}, {"data": data.uri, "parl": parl.uri})

    held = evaluated("digit_string=1")
    kinds = [kind.name for kind in KINDS[:4]]
    assert [(row["step"], row["suite"], row["kind"], row["n"]) for row in held.extra["kinds"]] == [
        (step, "image_program", kind, 1) for step in ("init", "parl") for kind in kinds
    ]
    logged = {name for row in history(store, held, "r/evaluate") for name in row if name.startswith("kind/")}
    assert logged == {f"kind/image_program/{kind}/{name}" for kind in kinds for name in ("value", "tool_calls", "n")}
    gallery = read_gallery(store, held, "r/evaluate")
    assert {name: len(cards) for name, cards in gallery["suites"].items()} == {"digit_string": 3, "image_program": 3}
    for card in (card for cards in gallery["suites"].values() for card in cards):
        assert list(card["attempts"]) == ["init", "parl"] and card["pictures"]

    def untouchable(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was evaluated again")

    monkeypatch.setattr(EmbeddedEngine, "__init__", untouchable)
    again = evaluated("")
    assert (held.extra["decision"], again.extra["decision"]) == ("hold", "promote") and again.uri != held.uri
    assert read_gallery(store, again, "r/evaluate") == gallery and again.extra["kinds"] == held.extra["kinds"]
