from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.export import save_model
from model.checkpoint.file_names import INDEX, WEIGHTS
from model.checkpoint.load import load_image_config, load_model, load_weights
from model.checkpoint.stored_tensors import StoredTensors
from model.checkpoint.tensor_names import released_tensors
from model.codec.image import ImageConfig
from model.data.batches.packing import pack
from model.network.config import load_config, preset
from model.network.expert_share import ExpertShare
from model.network.initial import new_model
from tests.drawn import text_sample
from tests.equality import part_of, same_tensors

EXPERT = "language_model.model.layers.3.mlp.experts.7.up_proj.weight"
PROJECTION = "language_model.model.layers.1.self_attn.o_proj.weight"


def test_round_trip(model, folder):
    loaded = load_model(folder)
    assert loaded.config == model.config and not loaded.training
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    for name, value in [*model.state_dict().items(), *model.named_buffers()]:
        assert torch.equal((buffers | loaded.state_dict())[name], value), name


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("name", [PROJECTION, EXPERT])
def test_a_missing_tensor_is_named(folder, name):
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(MoonflowError, match=f"{WEIGHTS}.*{name} is missing"):
        load_model(folder)


def test_an_unknown_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"language_model.extra.weight": torch.zeros(1)}))
    with pytest.raises(MoonflowError, match="language_model.extra.weight is unknown"):
        load_model(folder)


@pytest.mark.parametrize("name", [PROJECTION, EXPERT])
def test_a_misshapen_tensor_is_named(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(128, 64)}))
    with pytest.raises(MoonflowError, match=rf"{name} is \[128, 64\].*\[128, 128\]"):
        load_model(folder)


def test_a_missing_expert_is_an_error(folder):
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for matrix in ("gate_proj", "up_proj", "down_proj"):
            del tensors[f"language_model.model.layers.3.mlp.experts.7.{matrix}.weight"]

    rewrite(folder, drop)
    with pytest.raises(MoonflowError, match=r"layers.3.mlp.experts.7.\w+.weight is missing"):
        load_model(folder)


def test_a_cut_short_file_is_an_error(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(MoonflowError, match=f"{WEIGHTS} is damaged"):
        load_model(folder)


def test_a_folder_without_weights_or_config_is_an_error(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(MoonflowError, match="no weights at"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MoonflowError, match="no model config at"):
        load_model(folder)


def test_bfloat16_checkpoints_are_read_into_float32_or_as_asked(model, tmp_path):
    save_model(model, tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {f"language_model.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2, 3)}
    assert {tensor.dtype for name, tensor in stored.items() if name not in kept} == {torch.bfloat16}
    loaded = load_model(tmp_path / "half")
    assert loaded.config.dtype == "bfloat16"
    for name, tensor in released_tensors(loaded.state_dict()).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float()), name
    save_model(loaded, tmp_path / "again", dtype=torch.bfloat16)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "half" / WEIGHTS).read_bytes()
    save_model(loaded, tmp_path / "full")
    assert load_config(tmp_path / "full" / "config.json").dtype == "float32"

    half = load_model(tmp_path / "half", dtype=torch.bfloat16)
    for name, tensor in released_tensors(half.state_dict()).items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name
    words = text_sample(torch.arange(20))
    with torch.no_grad():
        expected, got = (each(pack([words], loaded.config.pad_token_id)).float() for each in (loaded, half))
    assert torch.nn.functional.cosine_similarity(expected, got).min() > 0.999


def shard(folder: Path, count: int) -> dict[str, str]:
    """Cut model.safetensors as released checkpoints are cut; returns tensor name -> file."""
    tensors, file_of = load_file(folder / WEIGHTS), {}
    for number in range(count):
        part = {name: tensors[name] for name in sorted(tensors)[number::count]}
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file(part, folder / file)
        file_of |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": file_of}))
    return file_of


def test_shards_are_read_by_their_index(model, folder):
    file_of = shard(folder, 3)
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())

    first = folder / file_of[PROJECTION]
    tensors = load_file(first)
    save_file({name: value for name, value in tensors.items() if name != PROJECTION}, first)
    with pytest.raises(MoonflowError, match=f"{first.name}: tensor {PROJECTION} is missing"):
        load_model(folder)
    first.unlink()
    with pytest.raises(MoonflowError, match=f"no weights at .*{first.name}"):
        load_model(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {PROJECTION: "../elsewhere.safetensors"}}))
    with pytest.raises(MoonflowError, match="not a file of its folder"):
        load_model(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(MoonflowError, match=f"{INDEX} is damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 0), ("patch_size", 10**9), ("merge_kernel_size", 0), ("temporal_merge_kernel_size", 0),
        ("in_patch_limit", -1), ("patch_limit_on_one_side", 0), ("sample_fps", 0.0), ("sample_fps", -2.0),
        ("max_num_frames_each_video", 0), ("image_std", [0.5, 0.0, 0.5]),
    ],
)  # fmt: skip
def test_how_images_are_prepared_has_bounds_and_is_refused_by_its_name(tmp_path, field, value):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"media_proc_cfg": {**ImageConfig().model_dump(mode="json"), field: value}}))
    with pytest.raises(MoonflowError, match=f"gives no usable media_proc_cfg .{field}") as caught:
        load_image_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_model, lambda folder: load_weights(new_model(preset("tiny"), seed=1), folder)])
def test_nothing_is_drawn_to_load(folder, load):
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_loaded_into_a_model_that_keeps_its_own_dtype_and_tables(model, folder):
    into = new_model(preset("tiny"), seed=1).bfloat16()
    into.language_model.model.rotary.frequencies_r = torch.ones(8)
    parameters = dict(into.named_parameters())
    load_weights(into, folder)
    assert all(parameters[name] is parameter for name, parameter in into.named_parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(into.state_dict()[name], value.bfloat16()), name
    assert torch.equal(into.language_model.model.rotary.frequencies_r, torch.ones(8))


def test_a_checkpoint_of_another_shape_leaves_a_model_as_it_was(folder):
    into = new_model(preset("tiny"), seed=1)
    before = {name: value.clone() for name, value in into.state_dict().items()}
    rewrite(folder, lambda tensors: tensors.pop(PROJECTION))
    with pytest.raises(MoonflowError, match=f"{PROJECTION} is missing"):
        load_weights(into, folder)
    assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())


@pytest.mark.parametrize("expert_precision", ["full", "int4"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_rank_loads_its_own_experts_alone(model, tmp_path, monkeypatch, parts, expert_precision):
    save_model(model, tmp_path / "all", expert_precision)
    whole, read = load_model(tmp_path / "all"), list[str]()
    plain = StoredTensors.read

    def noted(stored: StoredTensors, name: str) -> Tensor:
        read.append(name)
        return plain(stored, name)

    monkeypatch.setattr(StoredTensors, "read", noted)
    for number in range(parts):
        share = ExpertShare(number, parts)
        expected = part_of(whole.state_dict(), model.config, share)
        part = load_model(tmp_path / "all", share=share)
        assert same_tensors(part.state_dict(), expected)
        assert same_tensors(dict(part.named_buffers()), dict(whole.named_buffers()))
        again = new_model(model.config, 5, share)
        load_weights(again, tmp_path / "all")  # as a run does that goes on
        assert same_tensors(again.state_dict(), expected)
    assert read.count(EXPERT) == 2 and read.count(PROJECTION) == 2 * parts


def test_a_part_is_compared_with_the_whole_checkpoint(folder):
    """Also the experts that other ranks read: all ranks refuse it, and none waits for another."""
    rewrite(folder, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(MoonflowError, match=f"{EXPERT} is missing"):
        load_model(folder, share=ExpertShare(0, 2))
