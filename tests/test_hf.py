from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import VISION_ALIASES, RopeScaling, load_config, parse_config, preset
from model.data.packing import pack
from model.data.tokenize import TokenizedSample
from model.errors import MoonflowError
from model.hf import (
    FILES,
    INDEX,
    WEIGHTS,
    export,
    load_image_config,
    load_model,
    released_tensors,
    save_model,
    stacked_tensors,
)
from model.image import ImageConfig
from model.multimodal import KimiK25
from model.tokenizer import Tokenizer
from tests.corpus import corpus
from tests.peers import randomise
from tests.tiny_folders import tiny_tokenizer

CONFIG = preset("tiny")


def released_shapes() -> dict[str, list[int]]:
    """The released names with the tiny preset's shapes, written out."""
    text, vision = CONFIG.text_config, CONFIG.vision_config
    hidden, width, heads = 128, 128, 4
    shapes = {
        "language_model.lm_head.weight": [1024, hidden],
        "language_model.model.embed_tokens.weight": [1024, hidden],
        "language_model.model.norm.weight": [hidden],
        "vision_tower.patch_embed.proj.weight": [width, 3, 14, 14],
        "vision_tower.patch_embed.proj.bias": [width],
        "vision_tower.patch_embed.pos_emb.weight": [16, 16, width],
        "mm_projector.pre_norm.weight": [width],
        "mm_projector.pre_norm.bias": [width],
        "mm_projector.proj.0.weight": [4 * width, 4 * width],
        "mm_projector.proj.0.bias": [4 * width],
        "mm_projector.proj.2.weight": [hidden, 4 * width],
        "mm_projector.proj.2.bias": [hidden],
        "vision_tower.encoder.final_layernorm.weight": [width],
        "vision_tower.encoder.final_layernorm.bias": [width],
    }

    def swiglu(prefix: str, inner: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = shapes[f"{prefix}.up_proj.weight"] = [inner, hidden]
        shapes[f"{prefix}.down_proj.weight"] = [hidden, inner]

    for layer in range(text.num_hidden_layers):
        prefix = f"language_model.model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": [hidden],
            f"{prefix}.post_attention_layernorm.weight": [hidden],
            f"{prefix}.self_attn.q_a_proj.weight": [96, hidden],
            f"{prefix}.self_attn.q_a_layernorm.weight": [96],
            f"{prefix}.self_attn.q_b_proj.weight": [heads * (16 + 16), 96],
            f"{prefix}.self_attn.kv_a_proj_with_mqa.weight": [96 + 16, hidden],
            f"{prefix}.self_attn.kv_a_layernorm.weight": [96],
            f"{prefix}.self_attn.kv_b_proj.weight": [heads * (16 + 32), 96],
            f"{prefix}.self_attn.o_proj.weight": [hidden, heads * 32],
        }
        if layer == 0:
            swiglu(f"{prefix}.mlp", 384)
            continue
        shapes[f"{prefix}.mlp.gate.weight"] = [8, hidden]
        shapes[f"{prefix}.mlp.gate.e_score_correction_bias"] = [8]
        swiglu(f"{prefix}.mlp.shared_experts", 128)
        for expert in range(8):
            swiglu(f"{prefix}.mlp.experts.{expert}", 128)
    for block in range(vision.vt_num_hidden_layers):
        prefix = f"vision_tower.encoder.blocks.{block}"
        for name, rows, columns in (("wqkv", 3 * width, width), ("wo", width, width)):
            shapes[f"{prefix}.{name}.weight"], shapes[f"{prefix}.{name}.bias"] = [rows, columns], [rows]
        for name, rows, columns in (("mlp.fc0", 256, width), ("mlp.fc1", width, 256)):
            shapes[f"{prefix}.{name}.weight"], shapes[f"{prefix}.{name}.bias"] = [rows, columns], [rows]
        for name in ("norm0", "norm1"):
            shapes[f"{prefix}.{name}.weight"] = shapes[f"{prefix}.{name}.bias"] = [width]
    return shapes


@pytest.fixture(scope="module")
def model() -> KimiK25:
    made = KimiK25(CONFIG)
    randomise(made, seed=7, std=0.08)
    return made.eval()


@pytest.fixture
def folder(model: KimiK25, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_the_names_and_shapes_are_the_released_ones(model, folder):
    written = {name: list(tensor.shape) for name, tensor in load_file(folder / WEIGHTS).items()}
    assert written == released_shapes()
    assert {name: list(tensor.shape) for name, tensor in released_tensors(model).items()} == written


def test_experts_keep_their_place(model):
    stacked = model.language_model.model.layers[2].mlp.experts
    tensors = released_tensors(model)
    prefix = "language_model.model.layers.2.mlp.experts.5"
    assert torch.equal(tensors[f"{prefix}.gate_proj.weight"], stacked.gate_up_proj[5, :128])
    assert torch.equal(tensors[f"{prefix}.up_proj.weight"], stacked.gate_up_proj[5, 128:])
    assert torch.equal(tensors[f"{prefix}.down_proj.weight"], stacked.down_proj[5])


def test_round_trip(model, folder):
    loaded = load_model(folder)
    assert loaded.config == model.config and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    unstacked = released_tensors(model)
    assert released_shapes().keys() == unstacked.keys()
    assert stacked_tensors(unstacked).keys() == model.state_dict().keys()


EXPERT = "language_model.model.layers.3.mlp.experts.7.up_proj.weight"
PROJECTION = "language_model.model.layers.1.self_attn.o_proj.weight"


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop(PROJECTION))
    with pytest.raises(MoonflowError, match=f"{WEIGHTS}.*{PROJECTION} is missing"):
        load_model(folder)


def test_an_unknown_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"language_model.extra.weight": torch.zeros(1)}))
    with pytest.raises(MoonflowError, match="language_model.extra.weight is unknown"):
        load_model(folder)


def test_a_misshapen_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({PROJECTION: torch.zeros(128, 64)}))
    with pytest.raises(MoonflowError, match=rf"{PROJECTION} is \[128, 64\].*\[128, 128\]"):
        load_model(folder)


def test_a_missing_matrix_of_an_expert_is_an_error(folder):
    rewrite(folder, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(MoonflowError, match=f"{EXPERT} is missing"):
        load_model(folder)


def test_a_misshapen_matrix_of_an_expert_is_an_error(folder):
    rewrite(folder, lambda tensors: tensors.update({EXPERT: torch.zeros(128, 64)}))
    with pytest.raises(MoonflowError, match=rf"{EXPERT} is \[128, 64\].*\[128, 128\]"):
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


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"text_config": {}}, "text_config"),
        ({"surprise": 1}, "surprise"),
        ({"vision_config": {**CONFIG.model_dump()["vision_config"], "mm_hidden_size": 64}}, "mm_hidden_size"),
    ],
)
def test_a_wrong_config_is_named(folder, change, complaint):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MoonflowError, match=f"{path}.*{complaint}"):
        load_config(path)


def test_the_vision_tower_has_its_sizes_under_both_families_of_keys(folder):
    written = json.loads((folder / "config.json").read_text())["vision_config"]
    assert (written["hidden_size"], written["vt_hidden_size"]) == (CONFIG.vision_config.vt_hidden_size,) * 2
    assert all(written[alias] == written[key] for key, alias in VISION_ALIASES.items())
    assert set(VISION_ALIASES.values()) == {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "pos_emb_height",
        "pos_emb_width",
        "pos_emb_time",
    }
    assert load_config(folder / "config.json") == CONFIG


def test_an_export_has_every_file_of_a_checkpoint(model, tmp_path):
    export(model, tiny_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, WEIGHTS}
    assert load_image_config(tmp_path) == ImageConfig()
    custom = ImageConfig(in_patch_limit=64)
    save_model(model, tmp_path, image_config=custom)
    assert load_image_config(tmp_path) == custom
    save_model(model, tmp_path, image_config=ImageConfig(patch_size=16))
    with pytest.raises(MoonflowError, match="patches of 16 pixels, 2 x 2 to a token, but config.json says 14, 2 x 2"):
        load_image_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(MoonflowError, match="preprocessor_config.json gives no usable media_proc_cfg"):
        load_image_config(tmp_path)


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


def test_a_model_is_exported_with_its_own_tokenizer_only(model, tmp_path):
    with pytest.raises(MoonflowError, match="the model has"):
        export(model, Tokenizer.train(corpus(), ranks=700), tmp_path)


def test_bfloat16_checkpoints_are_read_into_float32_or_as_asked(model, tmp_path):
    save_model(model, tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {f"language_model.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2, 3)}
    assert {tensor.dtype for name, tensor in stored.items() if name not in kept} == {torch.bfloat16}
    loaded = load_model(tmp_path / "half")
    assert loaded.config.dtype == "bfloat16"
    for name, tensor in released_tensors(loaded).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float()), name
    save_model(loaded, tmp_path / "again", dtype=torch.bfloat16)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "half" / WEIGHTS).read_bytes()
    save_model(loaded, tmp_path / "full")
    assert load_config(tmp_path / "full" / "config.json").dtype == "float32"

    half = load_model(tmp_path / "half", dtype=torch.bfloat16)
    for name, tensor in released_tensors(half).items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name
    words = TokenizedSample(torch.arange(20), torch.ones(20, dtype=torch.bool), None, [])
    with torch.no_grad():
        expected, got = (each(pack([words], CONFIG.pad_token_id)).float() for each in (loaded, half))
    assert torch.nn.functional.cosine_similarity(expected, got).min() > 0.999


def shard(folder: Path, count: int) -> dict[str, str]:
    """Cut model.safetensors as released checkpoints are cut; returns tensor name -> file."""
    tensors, place = load_file(folder / WEIGHTS), {}
    for number in range(count):
        part = {name: tensors[name] for name in sorted(tensors)[number::count]}
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file(part, folder / file)
        place |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": place}))
    return place


def test_shards_are_read_by_their_index(model, folder):
    place = shard(folder, 3)
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())

    first = folder / place[PROJECTION]
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


def released_config() -> dict[str, Any]:
    """A config.json as the released one is written: raw keys, YARN, and what transformers 4 leaves in every file."""
    generic = {"return_dict": True, "output_attentions": False, "max_length": 20, "top_k": 50, "id2label": {"0": "a"}}
    generic |= {"_name_or_path": "", "bad_words_ids": None, "torchscript": False, "pruned_heads": {}, "num_beams": 1}
    k25 = preset("k25")
    text = k25.text_config.model_dump(exclude_none=True) | generic | {"model_type": "kimi_k2", "ep_size": 1}
    text |= {"pretraining_tp": 1, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}
    text |= {"max_position_embeddings": 262144, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    text["rope_scaling"] = {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 64.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    }  # fmt: skip
    vision = k25.vision_config.model_dump() | {"_attn_implementation": "flash_attention_2"}
    raw = k25.model_dump(exclude={"text_config", "vision_config", "dtype", "quantization_config"})
    return raw | {"dtype": "bfloat16", "transformers_version": "4.56.2", "text_config": text, "vision_config": vision}


def test_a_released_config_is_read():
    config = parse_config(json.dumps(released_config()), "config.json")
    assert config.text_config.rope_scaling == RopeScaling(factor=64.0, original_max_position_embeddings=4096)
    assert config.text_config.softmax_scale == pytest.approx(192**-0.5 * (0.1 * math.log(64) + 1) ** 2)
    assert config.text_config.softmax_scale * 192**0.5 == pytest.approx(1.416**2, rel=1e-3)
    plain = preset("k25")
    same = {"rope_scaling": None, "max_position_embeddings": 4096, "model_type": "deepseek_v3"}
    assert config.text_config.model_copy(update=same) == plain.text_config
    assert config.vision_config == plain.vision_config and config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("text_config", {"rope_interleave": False}, "rope_interleave is False, but this network has only True"),
        ("text_config", {"head_dim": 32}, "head_dim is 32"),
        ("text_config", {"n_group": 8}, "n_group"),
        ("text_config", {"topk_method": "greedy"}, "topk_method"),
        ("text_config", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("text_config", {"scoring_func": "softmax"}, "scoring_func"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"num_key_value_heads": 2}, "MLA has no groups"),
        ("text_config", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "of type 'llama3'"),
        ("text_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 5.0"),
        (
            "text_config",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7}},
            "mscale must equal mscale_all_dim",
        ),
        (
            "text_config",
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
            },
            "rope_scaling is .* but rope_parameters is",
        ),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is relu"),
        ("vision_config", {"num_hidden_layers": 27}, "num_hidden_layers is 27, but vision_config.vt_num_hidden"),
        ("vision_config", {"surprise": 1}, "surprise"),
        ("vision_config", {"vt_num_attention_heads": 64, "num_attention_heads": 64}, "a multiple of 4"),
        ("", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("", {"image_token_id": 5}, "image_token_id is 5, but config.media_placeholder_token_id is 789"),
        ("", {"model_type": "kimi_vl"}, "model_type"),
    ],
)
def test_what_would_be_another_network_is_refused(folder, part, change, told):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    (raw[part] if part else raw).update(change)
    path.write_text(json.dumps(raw))
    with pytest.raises(MoonflowError, match=told):
        load_config(path)


def test_yarn_is_written_and_read(tmp_path):
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=64)
    text = CONFIG.text_config.model_copy(update={"rope_scaling": scaling})
    config = CONFIG.model_copy(update={"text_config": text})
    config.save(tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    CONFIG.save(tmp_path / "config.json")
    assert "rope_scaling" not in json.loads((tmp_path / "config.json").read_text())["text_config"]
