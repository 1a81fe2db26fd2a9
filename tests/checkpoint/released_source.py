"""A checkpoint as others write it: names, keys, types and INT4 layout of the released one, in few layers and experts.

Nothing of ours writes it: shapes are written out from the released list of tensors, and INT4 is packed by numpy.
Heads have the released sizes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.codec.released_files import write_tokenizer_files

Shapes = dict[str, tuple[int, ...]]

HIDDEN, VOCABULARY, LAYERS, EXPERTS, WIDTH, HEADS = 64, 1024, 3, 4, 64, 2
VISION, BLOCKS, GRID = 32, 2, 8
QUANTIZATION: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None, "block_structure": None, "dynamic": False, "group_size": 32, "num_bits": 4,
                "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}  # fmt: skip
YARN = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64, "type": "yarn",
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "auto_map": {"AutoConfig": "configuration_kimi_k25.KimiK25Config"},
    "bos_token_id": 768, "eos_token_id": 769, "pad_token_id": 1023, "dtype": "bfloat16", "ignore_index": -100,
    "media_placeholder_token_id": 789, "model_type": "kimi_k25", "tie_word_embeddings": False,
    "transformers_version": "4.57.1", "use_unified_vision_chunk": True,
    "video_placeholder": "<|kimi_k25_video_placeholder|>",
    "text_config": {
        "_name_or_path": "", "add_cross_attention": False, "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "auto_map": {"AutoModel": "modeling_deepseek.DeepseekV3"},
        "aux_loss_alpha": 0.001, "bos_token_id": 768, "eos_token_id": 769, "pad_token_id": 1023, "dtype": "bfloat16",
        "ep_size": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": HIDDEN, "id2label": {"0": "a"},
        "initializer_range": 0.02, "intermediate_size": 96, "kv_lora_rank": 512, "max_position_embeddings": 256,
        "model_type": "kimi_k2", "moe_intermediate_size": WIDTH, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": EXPERTS, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": HEADS,
        "num_experts_per_tok": 2, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS,
        "num_nextn_predict_layers": 0, "pretraining_tp": 1, "q_lora_rank": 32, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_scaling": YARN, "rope_theta": 50000.0,
        "routed_scaling_factor": 2.827, "scoring_func": "sigmoid", "seq_aux": True, "tf_legacy_loss": False,
        "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc", "use_cache": True, "v_head_dim": 128,
        "vocab_size": VOCABULARY,
    },
    "vision_config": {
        "_attn_implementation": "flash_attention_2", "init_pos_emb_height": GRID, "init_pos_emb_time": 4,
        "init_pos_emb_width": GRID, "merge_kernel_size": [2, 2], "merge_type": "sd2_tpool", "mm_hidden_size": VISION,
        "mm_projector_type": "patchmerger", "model_type": "", "patch_size": 14, "pos_emb_type": "divided_fixed",
        "projector_hidden_act": "gelu", "projector_ln_eps": 1e-05, "text_hidden_size": HIDDEN,
        "video_attn_type": "spatial_temporal", "vt_hidden_size": VISION, "vt_intermediate_size": 48,
        "vt_num_attention_heads": 2, "vt_num_hidden_layers": BLOCKS,
    },
}  # fmt: skip
MEDIA = {
    "in_patch_limit": 16384, "patch_size": 14, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "merge_kernel_size": 2, "fixed_output_tokens": None, "patch_limit_on_one_side": 512,
    "in_patch_limit_each_frame": 4096, "in_patch_limit_video": None, "sample_fps": 2.0,
    "max_num_frames_each_video": None, "temporal_merge_kernel_size": 4, "timestamp_mode": "hh:mm:ss.fff",
}  # fmt: skip


def text_shapes(config: Mapping[str, Any]) -> Shapes:
    """The decoder's tensors, experts as they are without INT4."""
    hidden, heads, width = config["hidden_size"], config["num_attention_heads"], config["moe_intermediate_size"]
    rope, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    query, latent = config["q_lora_rank"], config["kv_lora_rank"]
    top = "language_model.model."
    shapes: Shapes = {
        "language_model.lm_head.weight": (config["vocab_size"], hidden),
        f"{top}embed_tokens.weight": (config["vocab_size"], hidden),
        f"{top}norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        here = f"{top}layers.{layer}."
        shapes |= {
            f"{here}input_layernorm.weight": (hidden,),
            f"{here}post_attention_layernorm.weight": (hidden,),
            f"{here}self_attn.kv_a_layernorm.weight": (latent,),
            f"{here}self_attn.kv_a_proj_with_mqa.weight": (latent + rope, hidden),
            f"{here}self_attn.kv_b_proj.weight": (heads * (nope + value), latent),
            f"{here}self_attn.o_proj.weight": (hidden, heads * value),
            f"{here}self_attn.q_a_layernorm.weight": (query,),
            f"{here}self_attn.q_a_proj.weight": (query, hidden),
            f"{here}self_attn.q_b_proj.weight": (heads * (nope + rope), query),
        }
        if layer < config["first_k_dense_replace"]:
            shapes |= _ffn(f"{here}mlp.", config["intermediate_size"], hidden)
            continue
        shapes |= {
            f"{here}mlp.gate.weight": (config["n_routed_experts"], hidden),
            f"{here}mlp.gate.e_score_correction_bias": (config["n_routed_experts"],),
        }
        shapes |= _ffn(f"{here}mlp.shared_experts.", config["n_shared_experts"] * width, hidden)
        for expert in range(config["n_routed_experts"]):
            shapes |= _ffn(f"{here}mlp.experts.{expert}.", width, hidden)
    return shapes


def _ffn(prefix: str, width: int, hidden: int) -> Shapes:
    wide, narrow = (width, hidden), (hidden, width)
    return {
        f"{prefix}down_proj.weight": narrow,
        f"{prefix}gate_proj.weight": wide,
        f"{prefix}up_proj.weight": wide,
    }


def vision_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tower's and the projector's tensors."""
    width, inner, merged = config["vt_hidden_size"], config["vt_intermediate_size"], 4 * config["vt_hidden_size"]
    shapes: Shapes = {
        "mm_projector.pre_norm.weight": (width,),
        "mm_projector.proj.0.weight": (merged, merged),
        "mm_projector.proj.2.weight": (config["text_hidden_size"], merged),
        "vision_tower.encoder.final_layernorm.weight": (width,),
        "vision_tower.patch_embed.proj.weight": (width, 3, 14, 14),
    }
    for block in range(config["vt_num_hidden_layers"]):
        here = f"vision_tower.encoder.blocks.{block}."
        shapes |= {
            f"{here}mlp.fc0.weight": (inner, width),
            f"{here}mlp.fc1.weight": (width, inner),
            f"{here}norm0.weight": (width,),
            f"{here}norm1.weight": (width,),
            f"{here}wo.weight": (width, width),
            f"{here}wqkv.weight": (3 * width, width),
        }
    shapes |= {name.replace(".weight", ".bias"): (shape[0],) for name, shape in shapes.items()}
    grid = (config["init_pos_emb_height"], config["init_pos_emb_width"], width)
    return shapes | {"vision_tower.patch_embed.pos_emb.weight": grid}


def pack(levels: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [rows, columns / 8]: eight levels -8..7 in a word as level + 8, the first in the lowest four bits."""
    words = (levels + 8).astype(np.uint32).reshape(*levels.shape[:-1], -1, 8)
    return (words << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def rounded(values: NDArray[np.float64]) -> torch.Tensor:
    """bfloat16."""
    return torch.from_numpy(values).float().bfloat16()


@dataclass
class Released:
    """What is in the files.

    Attributes:
        config: of config.json.
        tensors: stored name -> tensor.
        values: released name -> what it stands for, in float64; INT4 as level times scale, not rounded.
    """

    config: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(CONFIG))
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def quantization(self) -> dict[str, Any]:
        """The released file has it in text_config."""
        return self.config["text_config"]["quantization_config"]


def draw(
    stored: str = "int4",
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> Released:
    """Random weights.

    Args:
        stored: "float32", "bfloat16", or "int4": bfloat16 with the routed experts in INT4.
        text: other values of text_config.
        vision: other values of vision_config.
    """
    made, random = Released(), np.random.default_rng(seed)
    made.config["text_config"] |= text or {}
    made.config["vision_config"] |= vision or {}
    dtype = torch.float32 if stored == "float32" else torch.bfloat16
    if stored == "int4":
        made.config["text_config"]["quantization_config"] = copy.deepcopy(QUANTIZATION)
    if stored == "float32":
        made.config["dtype"] = made.config["text_config"]["dtype"] = "float32"
    for name, shape in (text_shapes(made.config["text_config"]) | vision_shapes(made.config["vision_config"])).items():
        if stored == "int4" and ".mlp.experts." in name:
            _draw_int4(made, name, shape, random)
            continue
        values = random.normal(0, 0.08, shape)
        if "norm" in name and name.endswith("weight"):
            values = 1 + values
        kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        made.tensors[name] = torch.from_numpy(values).to(torch.float32).to(kept)
        made.values[name] = made.tensors[name].double().numpy()
    return made


def _draw_int4(made: Released, name: str, shape: tuple[int, ...], random: np.random.Generator) -> None:
    rows, columns = shape
    levels = random.integers(-7, 8, (rows, columns // 32, 32))
    levels[..., 3] = random.choice((-7, 7), (rows, columns // 32))  # the largest of a group is seven scales
    scale = rounded(0.03 * 2.0 ** random.normal(0, 1, (rows, columns // 32)))
    made.tensors[name + "_packed"] = torch.from_numpy(pack(levels.reshape(rows, columns)))
    made.tensors[name + "_scale"] = scale
    made.tensors[name + "_shape"] = torch.tensor([rows, columns], dtype=torch.int32)
    made.values[name] = (levels * scale.double().numpy()[..., None]).reshape(rows, columns)


def write(
    folder: Path, released: Released, shards: int = 3, more: Iterable[tuple[str, str]] = (("LICENSE", "Modified MIT"),)
) -> Path:
    """The folder as it is fetched: ``shards`` files with an index, or model.safetensors alone if that is 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released.config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": MEDIA}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 770, "max_length": 256}))
    (folder / "modeling_kimi_k25.py").write_text("raise SystemExit('never run')\n")
    write_tokenizer_files(folder)
    for name, text in more:
        (folder / name).write_text(text)
    names, file_of = sorted(released.tensors), {}
    for number in range(shards):
        # Consecutive, so that a file ends in the middle of an expert's three parts.
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:06d}.safetensors"
        save_file({name: released.tensors[name] for name in part}, folder / file)
        file_of |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
