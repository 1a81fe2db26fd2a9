"""The loss on a user's held-out conversations, through the real store, on checkpoints with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.evaluate.own_data import LOSSES, losses_before, own_held_out, write_losses
from components.runtime.checkpoints import manifest as manifests
from components.runtime.step import read_metrics, run_step
from components.runtime.store.open_store import open_store
from model.checkpoint.load import load_model
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.data.samples.shards import write_shard
from model.data.samples.tokenize import tokenize
from model.evals.likelihood import HeldOut
from tests.tiny_folders import write_checkpoint, write_data_folder


def said(number: int, words: int = 1) -> Sample:
    turns = [{"role": "user", "content": f"and {number}?"}, {"role": "assistant", "content": "well " * words}]
    return Sample(f"chat-00000-{number:08d}", "chat", "knowledge", "text", f"chat/{number}", messages=turns)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Held-out tasks of one short suite, and three conversations, one of them longer than any context here."""
    folder = write_data_folder(tmp_path / "data", 2)
    index = json.loads((folder / "index.json").read_text())
    (folder / "eval" / "chat.tar").write_bytes(write_shard([said(0), said(1, 1500), said(2, 3)]))
    index["families"] = {
        "digit_string": index["families"]["digit_string"],
        "chat": {"train": [], "eval": [{"shard": "eval/chat.tar", "samples": 3}]},
        "young": {"train": [{"shard": "x", "samples": 1}], "eval": []},
    }
    index["own"] = {name: {"weight": 1.0, "vision": False, "left_out": 0} for name in ("chat", "young")}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_what_fits_the_context_is_measured(data: Path, tmp_path: Path) -> None:
    folder, model = DataFolder(data), load_model(write_checkpoint(tmp_path / "checkpoint"))
    held = own_held_out(folder, 8, 256)
    assert held is not None
    fitting = [tokenize(one, folder.tokenizer, folder.image_config) for one in (said(0), said(2, 3))]
    expected = HeldOut({"chat": fitting}, {"chat": 0}, folder.tokenizer.pad_id).likelihood(model)
    assert held.likelihood(model) == expected and list(expected) == ["chat"]
    assert own_held_out(folder, 8, 8) is None


def test_losses_are_kept_for_the_next_attempt(tmp_path: Path) -> None:
    assert losses_before(None) == losses_before(tmp_path) == {}
    write_losses(tmp_path, {})
    assert not (tmp_path / LOSSES).exists()
    write_losses(tmp_path, {"init": {"chat": 1.5}})
    assert losses_before(tmp_path) == {"init": {"chat": 1.5}}


def test_every_checkpoint_has_its_loss_in_the_manifest_and_in_the_metrics(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "own")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_store()

    def publish(step: str, folder: Path, kind: str) -> str:
        return manifests.publish(store, f"own/{step}/0", folder, kind=kind, run_id="own", step=step, index=0).uri

    uris = {"data": publish("prepare_data", data, "data")}
    uris["zero_vision_sft"] = publish("zero_vision_sft", write_checkpoint(tmp_path / "checkpoint"), "checkpoint")
    config = {"samples": 2, "samples_intermediate": 2, "floors": "", "champion": "", "well_formed": 0.0}
    made = run_step("evaluate", config, uris)
    losses = made.extra["own_losses"]
    assert set(losses) == {"init", "zero_vision_sft"} and all(5 < one["chat"] < 10 for one in losses.values())
    folder = tmp_path / "fetched"
    manifests.fetch(store, made.uri, folder)
    assert losses_before(folder) == losses
    assert [row["held_out/chat"] for row in read_metrics(folder)] == [losses[step]["chat"] for step in losses]
