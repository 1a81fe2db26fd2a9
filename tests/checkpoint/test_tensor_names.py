from __future__ import annotations

import torch
from safetensors.torch import load_file

from model.checkpoint.file_names import WEIGHTS
from model.checkpoint.tensor_names import released_name, released_tensors, released_views
from model.network.config import preset


def released_shapes() -> dict[str, list[int]]:
    """The released names with the tiny preset's shapes, written out."""
    text, vision = preset("tiny").text_config, preset("tiny").vision_config
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


def test_the_names_and_shapes_are_the_released_ones(model, folder):
    written = {name: list(tensor.shape) for name, tensor in load_file(folder / WEIGHTS).items()}
    assert written == released_shapes()
    assert {name: list(tensor.shape) for name, tensor in released_tensors(model.state_dict()).items()} == written


def test_experts_keep_their_place(model):
    stacked = model.language_model.model.layers[2].mlp.experts
    tensors = released_tensors(model.state_dict())
    prefix = "language_model.model.layers.2.mlp.experts.5"
    assert torch.equal(tensors[f"{prefix}.gate_proj.weight"], stacked.gate_up_proj[5, :128])
    assert torch.equal(tensors[f"{prefix}.up_proj.weight"], stacked.gate_up_proj[5, 128:])
    assert torch.equal(tensors[f"{prefix}.down_proj.weight"], stacked.down_proj[5])


def test_what_is_written_into_a_view_is_in_the_model():
    gate_up, down = torch.zeros(2, 6, 4), torch.zeros(2, 4, 3)
    stacked = {"layer.mlp.experts.gate_up_proj": gate_up, "layer.mlp.experts.down_proj": down}
    for number, (_, view) in enumerate(released_views(stacked), 1):
        view.fill_(number)
    assert gate_up[:, ::3, 0].tolist() == [[1, 2], [3, 4]] and down[:, 0, 0].tolist() == [5, 6]
    assert gate_up.sum() == 3 * 4 * (1 + 2 + 3 + 4) and down.sum() == 4 * 3 * (5 + 6)


def test_the_names_of_transformers_are_known():
    same = "vision_tower.encoder.blocks.0.wqkv.weight"
    assert released_name(same) == same
    assert (
        released_name("language_model.model.blocks.3.mlp.gate.weight")
        == "language_model.model.layers.3.mlp.gate.weight"
    )
    assert released_name("model.mm_projector.proj.0.bias") == "mm_projector.proj.0.bias"
    assert released_name("vision_tower.encoder.patch_embed.proj.bias") == "vision_tower.patch_embed.proj.bias"
