"""The presets, and the released shape against the released index, written out here independently of the code."""

from __future__ import annotations

from functools import cache

import pytest

from model.checkpoint.tensor_names import released_tensors
from model.network.config import preset
from model.network.construction import build_on_meta
from model.network.multimodal import KimiK25
from model.plan.parameters import Parameters


@cache
def on_meta(name: str) -> KimiK25:
    return build_on_meta(preset(name))


def released_index() -> dict[str, list[int]]:
    """Names and shapes of the released checkpoint, its INT4 experts as plain matrices."""
    shapes = {
        "language_model.lm_head.weight": [163840, 7168],
        "language_model.model.embed_tokens.weight": [163840, 7168],
        "language_model.model.norm.weight": [7168],
        "vision_tower.patch_embed.proj.weight": [1152, 3, 14, 14],
        "vision_tower.patch_embed.proj.bias": [1152],
        "vision_tower.patch_embed.pos_emb.weight": [64, 64, 1152],
        "vision_tower.encoder.final_layernorm.weight": [1152],
        "vision_tower.encoder.final_layernorm.bias": [1152],
        "mm_projector.pre_norm.weight": [1152],
        "mm_projector.pre_norm.bias": [1152],
        "mm_projector.proj.0.weight": [4608, 4608],
        "mm_projector.proj.0.bias": [4608],
        "mm_projector.proj.2.weight": [7168, 4608],
        "mm_projector.proj.2.bias": [7168],
    }
    for block in range(27):
        prefix = f"vision_tower.encoder.blocks.{block}"
        for norm in ("norm0", "norm1"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = [1152]
        for matrix, rows, columns in (
            ("wqkv", 3456, 1152),
            ("wo", 1152, 1152),
            ("mlp.fc0", 4304, 1152),
            ("mlp.fc1", 1152, 4304),
        ):
            shapes[f"{prefix}.{matrix}.weight"], shapes[f"{prefix}.{matrix}.bias"] = [rows, columns], [rows]
    for layer in range(61):
        prefix = f"language_model.model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": [7168],
            f"{prefix}.post_attention_layernorm.weight": [7168],
            f"{prefix}.self_attn.q_a_proj.weight": [1536, 7168],
            f"{prefix}.self_attn.q_a_layernorm.weight": [1536],
            f"{prefix}.self_attn.q_b_proj.weight": [12288, 1536],
            f"{prefix}.self_attn.kv_a_proj_with_mqa.weight": [576, 7168],
            f"{prefix}.self_attn.kv_a_layernorm.weight": [512],
            f"{prefix}.self_attn.kv_b_proj.weight": [16384, 512],
            f"{prefix}.self_attn.o_proj.weight": [7168, 8192],
        }
        if layer > 0:
            shapes[f"{prefix}.mlp.gate.weight"] = [384, 7168]
            shapes[f"{prefix}.mlp.gate.e_score_correction_bias"] = [384]
        ffns = [("mlp", 18432)]
        if layer > 0:
            ffns = [("mlp.shared_experts", 2048), *((f"mlp.experts.{expert}", 2048) for expert in range(384))]
        for ffn, width in ffns:
            shapes[f"{prefix}.{ffn}.gate_proj.weight"] = shapes[f"{prefix}.{ffn}.up_proj.weight"] = [width, 7168]
            shapes[f"{prefix}.{ffn}.down_proj.weight"] = [7168, width]
    return shapes


def test_k25_has_the_released_names_and_shapes():
    model = on_meta("k25")
    ours = {name: list(tensor.shape) for name, tensor in released_tensors(model.state_dict()).items()}
    expected = released_index()
    assert ours.keys() == expected.keys()
    assert ours == expected


def test_k25_has_the_published_sizes():
    """K2's report says 1.04T and 32.6B. The released shapes make 1.027T and 32.9B, embedding and head included; that
    they are complete shows in the released files' size, which the report's larger total would not give."""
    model = on_meta("k25")
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
    vision = sum(parameter.numel() for parameter in model.vision_tower.parameters())
    projector = sum(parameter.numel() for parameter in model.mm_projector.parameters())
    active = total - vision - projector - routed + routed * 8 // 384
    assert total == pytest.approx(1.04e12, rel=0.015)
    assert active == pytest.approx(32.6e9, rel=0.01)
    assert vision == pytest.approx(417e6, abs=0.5e6)
    assert projector == pytest.approx(54e6, abs=0.5e6)
    # 4 bits and a bfloat16 scale for each 32 weights of the routed experts, bfloat16 for the rest.
    int4_files = routed * (0.5 + 2 / 32) + (total - routed) * 2
    assert int4_files / 2**30 == pytest.approx(554, abs=0.5)


@pytest.mark.parametrize("name", ["tiny", "small", "k25"])
def test_planned_parameters_are_those_of_the_network(name):
    model, parts = on_meta(name), Parameters(preset(name))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert parts.all.total == sum(sizes.values())
    assert parts.routed.total == sum(size for name, size in sizes.items() if ".mlp.experts." in name)
    assert parts.vision_tower.total == sum(size for name, size in sizes.items() if name.startswith("vision_tower"))
    assert parts.projector.total == sum(size for name, size in sizes.items() if name.startswith("mm_projector"))


def test_small_keeps_the_released_dimensions_of_a_head_and_fits_one_gpu():
    """GPU kernels of latent attention are built for these dimensions."""
    for name in ("small", "k25"):
        text = preset(name).text_config
        dimensions = (text.kv_lora_rank, text.qk_rope_head_dim, text.qk_nope_head_dim, text.v_head_dim)
        assert dimensions == (512, 64, 128, 128)
    assert Parameters(preset("small")).all.total < 1e9
