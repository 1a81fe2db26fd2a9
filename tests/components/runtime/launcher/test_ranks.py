from __future__ import annotations

from pathlib import Path

import pytest

from components.runtime.checkpoints import manifest
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.launcher.launch import launch
from components.runtime.launcher.placement import Placement
from components.runtime.step import read_metrics
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import INDEX, weights_file
from model.checkpoint.load import load_model
from model.data.order.family_shares import LONG_TEXT, TEXT, VISION
from model.network.config import preset
from model.network.initial import new_model
from tests.equality import distance
from tests.published import publish_output
from tests.tiny_folders import write_training_folder
from tests.training import save_checkpoint

SHORT = {"steps": 10, "projector_steps": 1, "rows": 2, "tokens_per_row": 128, "products": "float32"}


def trained(placement: dict[str, object], run_id: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """ViT pre-training of a run of its own, at that placement."""
    monkeypatch.setenv("MOONFLOW_RUN_ID", run_id)
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(folder / run_id))
    data = publish_output(open_store(), folder / "data", run_id, "prepare_data", kind="data")
    return launch("vit_pretrain", SHORT, {"data": data.uri}, Placement.parse(placement, "test"))


@pytest.mark.slow
@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_two_ranks_train_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expert_parallel: int) -> None:
    """A step by torchrun and DeepSpeed, media and all: the same losses, one manifest, one log.

    Ranks that divide the experts build and save their own; the two phases of the step have an engine each.
    """
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/objects")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (tmp_path / "data").mkdir()
    write_training_folder(tmp_path / "data", TEXT | VISION, 4)
    alone = trained({}, "alone", tmp_path, monkeypatch)
    layout = {"launcher": "ranks", "processes": 2, "zero_stage": 1, "expert_parallel": expert_parallel}
    shared = trained(layout, "shared", tmp_path, monkeypatch)
    store = open_store()
    histories = []
    for made in (alone, shared):
        manifest.fetch(store, made.uri, tmp_path / "fetched" / made.run_id)
        histories.append(read_metrics(tmp_path / "fetched" / made.run_id))
    assert [row["step"] for row in histories[1]] == [row["step"] for row in histories[0]] == [10, 11]
    for one, two in zip(*histories, strict=True):
        for name in ("loss/total", "loss/text", "loss/vision", "gradient_norm", "data/fill"):
            assert two[name] == pytest.approx(one[name], rel=2e-3), name
    assert shared.tokens_seen == alone.tokens_seen
    written = {file.name for file in shared.files} - {file.name for file in alone.files}
    of_ranks = {f"optimizer-{rank:05d}-of-00002.safetensors" for rank in range(2)}
    if expert_parallel == 2:
        of_ranks |= {INDEX, *(weights_file(rank, 2) for rank in range(2))}
    assert written == of_ranks
    one, two = (load_model(tmp_path / "fetched" / made.run_id).state_dict() for made in (alone, shared))
    assert all(distance(value, one[name]) < 0.05 for name, value in two.items() if one[name].any())
    assert launch(
        "vit_pretrain", SHORT, {"data": f"{store.uri('shared')}/prepare_data/0"}, Placement.parse({}, "test")
    ) == shared, "a finished step runs again under another layout"  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("step", ["joint_rl", "parl"])
def test_two_ranks_play_and_learn_as_one_process(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes with tools on each rank, one policy, one manifest."""
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/objects")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    store = open_store()
    (tmp_path / "data").mkdir()
    write_training_folder(tmp_path / "data", {*LONG_TEXT, *VISION, "wide_search"}, 4)
    save_checkpoint(tmp_path / "parent", new_model(preset("tiny"), seed=5), tmp_path / "data", None, {})
    uris = {}
    for name, kind in (("data", "data"), ("parent", "checkpoint")):
        named = {"run_id": "given", "step": name, "index": 0, "kind": kind, "complete": True}
        uris[name] = manifest.publish(store, f"given/{name}/0", tmp_path / name, **named).uri
    parents = {"joint_rl": ("parent",), "parl": ("policy", "sub_agents")}[step]
    inputs = {"data": uris["data"], **dict.fromkeys(parents, uris["parent"])}
    config = {"iterations": 2, "prompts_per_iteration": 3, "samples_per_prompt": 2, "ptx_rows": 2}
    histories = []
    for run_id, placement in (("alone", {}), ("shared", {"launcher": "ranks", "processes": 2, "zero_stage": 3})):
        monkeypatch.setenv("MOONFLOW_RUN_ID", run_id)
        monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / run_id))
        made = launch(step, config, inputs, Placement.parse(placement, "test"))
        manifest.fetch(store, made.uri, tmp_path / "fetched" / run_id)
        histories.append(read_metrics(tmp_path / "fetched" / run_id))
    assert [row["step"] for row in histories[1]] == [row["step"] for row in histories[0]] == [1, 2]
    one, two = histories[0][0], histories[1][0]
    for name in ("loss/total", "loss/text", "loss/vision", "gradient_norm", "reward/mean", "tokens/response"):
        assert two[name] == pytest.approx(one[name], rel=2e-3), name


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"launcher": "ranks", "processes": 2, "expert_parallel": 3}, "expert_parallel = 3 does not divide 2 ranks"),
        ({"launcher": "ranks", "processes": 2, "zero_stage": 4}, "zero_stage"),
        ({"sequence_parallel": 2}, "sequence_parallel = 2 does not divide 1 ranks"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_by_name(values: dict[str, object], told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        Placement.parse(values, "test")
