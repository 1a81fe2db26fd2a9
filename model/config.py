"""The model's shape, in the keys of the released config.json (source: the released config)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.errors import MoonflowError

PRESETS = Path(__file__).parent / "presets"


class RopeScaling(BaseModel):
    """YaRN. A model trained without it ships without it: its presence alone changes the softmax scale."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1, description="context extension factor")
    original_max_position_embeddings: int = Field(description="positions seen before the extension")
    beta_fast: float = Field(default=32.0, description="rotations above which a frequency is left as it is")
    beta_slow: float = Field(default=1.0, description="rotations below which a frequency is fully interpolated")
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


class TextConfig(BaseModel):
    """DeepSeek-V3 keys of ``text_config``."""

    model_config = ConfigDict(extra="forbid")

    architectures: list[str] = ["DeepseekV3ForCausalLM"]
    model_type: str = "deepseek_v3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int = Field(description="FFN width of the dense layers")
    moe_intermediate_size: int = Field(description="FFN width of one expert")
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    n_routed_experts: int
    n_shared_experts: int = 1
    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    scoring_func: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.827
    aux_loss_alpha: float = 1e-3
    seq_aux: bool = True
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 50000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    use_cache: bool = True
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim**-0.5, times m**2 under YaRN with m = 0.1 * mscale_all_dim * ln(factor) + 1."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None:
            scale *= (0.1 * self.rope_scaling.mscale_all_dim * math.log(self.rope_scaling.factor) + 1.0) ** 2
        return scale


# Key of the released vision_config -> the key under which serving engines' and transformers' config classes look for
# the same value, and silently take their own default if it is missing. A saved config.json has both.
VISION_ALIASES = {
    "vt_hidden_size": "hidden_size",
    "vt_num_hidden_layers": "num_hidden_layers",
    "vt_num_attention_heads": "num_attention_heads",
    "vt_intermediate_size": "intermediate_size",
    "init_pos_emb_height": "pos_emb_height",
    "init_pos_emb_width": "pos_emb_width",
    "init_pos_emb_time": "pos_emb_time",
}


class VisionConfig(BaseModel):
    """MoonViT-3D and its projector."""

    model_config = ConfigDict(extra="forbid")

    model_type: str = "kimi_k25_vision"
    patch_size: int = 14
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    init_pos_emb_time: int = 4
    pos_emb_type: Literal["divided_fixed"] = "divided_fixed"
    vt_hidden_size: int
    vt_num_hidden_layers: int
    vt_num_attention_heads: int
    vt_intermediate_size: int
    merge_kernel_size: tuple[int, int] = (2, 2)
    merge_type: Literal["sd2_tpool"] = "sd2_tpool"
    video_attn_type: Literal["spatial_temporal"] = "spatial_temporal"
    mm_projector_type: Literal["patchmerger"] = "patchmerger"
    mm_hidden_size: int
    projector_hidden_act: Literal["gelu"] = "gelu"
    projector_ln_eps: float = 1e-5
    text_hidden_size: int

    @model_validator(mode="before")
    @classmethod
    def _without_aliases(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for key, alias in VISION_ALIASES.items():
            if alias in given and given.get(key, given[alias]) != given[alias]:
                raise ValueError(f"vision_config.{alias} is {given[alias]}, but vision_config.{key} is {given[key]}")
        return {key: value for key, value in given.items() if key not in VISION_ALIASES.values()}

    @model_validator(mode="after")
    def _consistent(self) -> VisionConfig:
        if self.mm_hidden_size != self.vt_hidden_size:
            raise ValueError("vision_config.mm_hidden_size must equal vision_config.vt_hidden_size")
        if (self.vt_hidden_size // self.vt_num_attention_heads) % 4:
            raise ValueError(
                "vision_config: vt_hidden_size / vt_num_attention_heads must be a multiple of 4 (2-D RoPE)"
            )
        return self


class ModelConfig(BaseModel):
    """The whole config.json."""

    model_config = ConfigDict(extra="forbid")

    architectures: list[str] = ["KimiK25ForConditionalGeneration"]
    model_type: str = "kimi_k25"
    text_config: TextConfig
    vision_config: VisionConfig
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    ignore_index: int = -100
    media_placeholder_token_id: int
    use_unified_vision_chunk: bool = True
    video_placeholder: str = "<|kimi_k25_video_placeholder|>"
    tie_word_embeddings: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.vision_config.text_hidden_size != self.text_config.hidden_size:
            raise ValueError("vision_config.text_hidden_size must equal text_config.hidden_size")
        return self

    def save(self, path: Path) -> None:
        """Write config.json, the vision tower's sizes under both families of keys."""
        raw = self.model_dump(exclude_none=True)
        vision = raw["vision_config"]
        vision |= {alias: vision[key] for key, alias in VISION_ALIASES.items()}
        path.write_text(json.dumps(raw, indent=2) + "\n")


def parse_config(text: str, where: str) -> ModelConfig:
    """Read config.json text.

    Raises:
        MoonflowError: naming ``where`` and the first offending key.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        return ModelConfig.model_validate(raw)
    except ValueError as error:
        first = str(error).splitlines()[:3]
        raise MoonflowError(f"{where} is not a usable model config: {' '.join(first)}") from error


def load_config(path: Path) -> ModelConfig:
    """Read a config.json file; raises MoonflowError when it is missing or wrong."""
    if not path.is_file():
        raise MoonflowError(f"no model config at {path}; a checkpoint folder holds config.json")
    return parse_config(path.read_text(), str(path))


def preset(name: str) -> ModelConfig:
    """One of ``model/presets``: tiny, small, k25. Raises MoonflowError for any other name."""
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise MoonflowError(f"unknown model preset {name!r}; choose one of {known}")
    return load_config(path)
