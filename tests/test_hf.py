from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import VISION_ALIASES, load_config, preset
from model.data.packing import pack
from model.data.tokenize import TokenizedSample
from model.errors import MoonflowError
from model.hf import WEIGHTS, load_model, released_tensors, save_model, stacked_tensors
from model.multimodal import KimiK25
from tests.peers import randomise, same_latent_eps

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
    assert load_config(folder / "config.json") == CONFIG


def test_families_that_disagree_are_an_error(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["vision_config"]["num_hidden_layers"] = 27
    path.write_text(json.dumps(raw))
    with pytest.raises(MoonflowError, match="vision_config.num_hidden_layers is 27, but vision_config.vt_num_hidden"):
        load_config(path)


@pytest.fixture
def native(folder: Path) -> torch.nn.Module:
    """Our checkpoint in transformers' native class; its loader renames the tensors itself."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    raw = json.loads((folder / "config.json").read_text())
    config = transformers.Kimi_K25Config(
        text_config=raw["text_config"],
        vision_config=raw["vision_config"],
        projection_hidden_size=raw["vision_config"]["mm_hidden_size"],
        projection_layer_norm_eps=raw["vision_config"]["projector_ln_eps"],
        image_token_id=raw["media_placeholder_token_id"],
        tie_word_embeddings=False,
        video_token_id=-1,
    )
    loaded, report = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(
        folder, config=config, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    same_latent_eps(loaded, CONFIG.text_config)
    return loaded.eval()


@torch.no_grad()
def test_transformers_reads_our_checkpoint_and_gives_the_same_logits(model, native):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 768, (12,), generator=generator)
    pad = torch.full((6,), CONFIG.media_placeholder_token_id)
    grid, pixels = (1, 4, 6), torch.rand(24, 3, 14, 14, generator=generator)
    loss = torch.ones(12, dtype=torch.bool)
    for sample, media in (
        (TokenizedSample(words, loss, None, []), {}),
        (
            TokenizedSample(torch.cat((words[:5], pad, words[5:])), torch.ones(18, dtype=torch.bool), pixels, [grid]),
            {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])},
        ),
    ):
        expected = native(input_ids=sample.input_ids.unsqueeze(0), **media).logits[0, :-1]
        torch.testing.assert_close(model(pack([sample], CONFIG.pad_token_id)), expected, atol=5e-4, rtol=1e-3)
