"""The model's shape, in the keys of the released config.json (source: the released config)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from model.boundary import config_bounds as bounds
from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.network.config_keys import VISION_ALIASES, VISION_FIXED, one_rope, read_keys
from model.network.quantization_config import QuantizationConfig

PRESETS = Path(__file__).parent / "presets"

# Which classes of ``model/codec/remote/processing_kimi_k25.py``, shipped with every checkpoint, prepare its inputs.
AUTO_MAP = {
    "AutoProcessor": "processing_kimi_k25.KimiK25Processor",
    "AutoImageProcessor": "processing_kimi_k25.KimiK25VisionProcessor",
}


class RopeScaling(BaseModel):
    """YaRN. The config of a model trained without it must not have it: its presence alone changes the softmax scale."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["yarn"] = "yarn"
    factor: bounds.Extension = Field(description="context extension factor")
    original_max_position_embeddings: bounds.Positions = Field(description="positions seen before the extension")
    beta_fast: bounds.Rotations = Field(default=32.0, description="rotations above which a frequency is left as it is")
    beta_slow: bounds.Rotations = Field(default=1.0, description="rotations below which one is fully interpolated")
    mscale: bounds.Weight = 1.0
    mscale_all_dim: bounds.Weight = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> RopeScaling:
        if self.mscale != self.mscale_all_dim:
            raise ValueError("rope_scaling: mscale must equal mscale_all_dim, or the rotation itself would be scaled")
        return self


class TextConfig(BaseModel):
    """DeepSeek-V3 keys of ``text_config``."""

    model_config = ConfigDict(extra="forbid")

    architectures: list[str] = ["DeepseekV3ForCausalLM"]
    model_type: Literal["deepseek_v3", "kimi_k2"] = "deepseek_v3"
    vocab_size: bounds.Vocabulary
    hidden_size: bounds.Width
    intermediate_size: bounds.InnerWidth = Field(description="FFN width of the dense layers")
    moe_intermediate_size: bounds.InnerWidth = Field(description="FFN width of one expert")
    num_hidden_layers: bounds.Layers
    num_attention_heads: bounds.Heads
    num_key_value_heads: bounds.Heads
    first_k_dense_replace: bounds.LeadingLayers = 1
    moe_layer_freq: bounds.Layers = 1
    n_routed_experts: bounds.Experts
    n_shared_experts: bounds.Experts = 1
    num_experts_per_tok: bounds.Experts
    n_group: Literal[1] = 1
    topk_group: Literal[1] = 1
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    scoring_func: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: Literal[True] = True
    routed_scaling_factor: bounds.Scale = 2.827
    aux_loss_alpha: bounds.Weight = 1e-3
    seq_aux: StrictBool = True
    q_lora_rank: bounds.Width
    kv_lora_rank: bounds.Width
    qk_nope_head_dim: bounds.HeadWidth
    qk_rope_head_dim: bounds.RotaryWidth
    v_head_dim: bounds.HeadWidth
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    attention_dropout: bounds.Share = 0.0
    rms_norm_eps: bounds.Epsilon = 1e-5
    rope_theta: bounds.RotaryBase = 50000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: bounds.Positions
    initializer_range: bounds.Deviation = 0.02
    tie_word_embeddings: Literal[False] = False
    num_nextn_predict_layers: Literal[0] = 0
    use_cache: StrictBool = True
    bos_token_id: bounds.TokenId
    eos_token_id: bounds.TokenId
    pad_token_id: bounds.TokenId

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fixed: dict[str, Any] = {"rope_interleave": True}
        if isinstance(nope := given.get("qk_nope_head_dim"), int) and isinstance(
            rope := given.get("qk_rope_head_dim"), int
        ):
            fixed |= {"head_dim": rope, "qk_head_dim": nope + rope}
        kept = read_keys(given, "text_config", {}, fixed)
        # The whole model has one dtype. transformers writes num_nextn_predict_layers = 1 by default, also for models
        # without such layers; a checkpoint that has weights of such layers is refused when it is loaded.
        for key in ("dtype", "torch_dtype", "num_nextn_predict_layers"):
            kept.pop(key, None)
        return one_rope(kept)

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError("text_config.num_key_value_heads must equal num_attention_heads: MLA has no groups")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError("text_config.num_experts_per_tok is more than n_routed_experts")
        return self

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim**-0.5, times m**2 under YaRN with m = 0.1 * mscale_all_dim * ln(factor) + 1."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None:
            scale *= (0.1 * self.rope_scaling.mscale_all_dim * math.log(self.rope_scaling.factor) + 1.0) ** 2
        return scale


class VisionConfig(BaseModel):
    """MoonViT-3D and its projector."""

    model_config = ConfigDict(extra="forbid")

    model_type: str = "kimi_k25_vision"
    patch_size: bounds.PatchSize = 14
    init_pos_emb_height: bounds.GridSize = 64
    init_pos_emb_width: bounds.GridSize = 64
    init_pos_emb_time: bounds.Frames = 4
    pos_emb_type: Literal["divided_fixed"] = "divided_fixed"
    vt_hidden_size: bounds.Width
    vt_num_hidden_layers: bounds.Layers
    vt_num_attention_heads: bounds.Heads
    vt_intermediate_size: bounds.InnerWidth
    merge_kernel_size: tuple[bounds.MergedPatches, bounds.MergedPatches] = (2, 2)
    merge_type: Literal["sd2_tpool"] = "sd2_tpool"
    video_attn_type: Literal["spatial_temporal"] = "spatial_temporal"
    mm_projector_type: Literal["patchmerger"] = "patchmerger"
    mm_hidden_size: bounds.Width
    projector_hidden_act: Literal["gelu"] = "gelu"
    projector_ln_eps: bounds.Epsilon = 1e-5
    text_hidden_size: bounds.Width

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept = read_keys(given, "vision_config", VISION_ALIASES, VISION_FIXED)
        kept.pop("dtype", None), kept.pop("torch_dtype", None)
        return kept

    @model_validator(mode="after")
    def _consistent(self) -> VisionConfig:
        if self.mm_hidden_size != self.vt_hidden_size:
            raise ValueError("vision_config.mm_hidden_size must equal vision_config.vt_hidden_size")
        if self.vt_hidden_size % (4 * self.vt_num_attention_heads):
            raise ValueError(
                "vision_config: vt_hidden_size / vt_num_attention_heads must be a multiple of 4 (2-D RoPE)"
            )
        return self


class ModelConfig(BaseModel):
    """The whole config.json."""

    model_config = ConfigDict(extra="forbid")

    architectures: list[str] = ["KimiK25ForConditionalGeneration"]
    model_type: Literal["kimi_k25"] = "kimi_k25"
    text_config: TextConfig
    vision_config: VisionConfig
    bos_token_id: bounds.TokenId
    eos_token_id: bounds.TokenId
    pad_token_id: bounds.TokenId
    ignore_index: bounds.IgnoredLabel = -100
    media_placeholder_token_id: bounds.TokenId
    use_unified_vision_chunk: StrictBool = True
    video_placeholder: str = "<|kimi_k25_video_placeholder|>"
    tie_word_embeddings: Literal[False] = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization_config: QuantizationConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        """Fills in what transformers' own config leaves out: it keeps some values elsewhere, or under other names."""
        if not isinstance(given, dict) or not all(
            isinstance(given.get(part), dict) for part in ("text_config", "vision_config")
        ):
            return given
        aliases = {"media_placeholder_token_id": "image_token_id", "dtype": "torch_dtype"}
        kept = read_keys(given, "config", aliases, {})
        if kept.get("architectures") == ["Kimi_K25ForConditionalGeneration"]:  # transformers' spelling
            del kept["architectures"]
        text, vision = dict(kept["text_config"]), dict(kept["vision_config"])
        inner = text.pop("quantization_config", None)  # the released file's place; config classes lift it to the top
        if inner is not None and kept.setdefault("quantization_config", inner) != inner:
            raise ValueError("quantization_config and text_config.quantization_config differ")
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if key in text:
                kept.setdefault(key, text[key])
        width = kept.pop("projection_hidden_size", vision.get("vt_hidden_size", vision.get("hidden_size")))
        for key, value in (
            ("mm_hidden_size", width),
            ("projector_ln_eps", kept.pop("projection_layer_norm_eps", None)),
            ("text_hidden_size", text.get("hidden_size")),
        ):
            if value is not None and vision.get(key) is None:
                vision[key] = value
        return kept | {"text_config": text, "vision_config": vision}

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.vision_config.text_hidden_size != self.text_config.hidden_size:
            raise ValueError("vision_config.text_hidden_size must equal text_config.hidden_size")
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "media_placeholder_token_id"):
            for part in (self, self.text_config):
                if (token := getattr(part, key, 0)) >= self.text_config.vocab_size:
                    raise ValueError(f"{key} is {token}, past text_config.vocab_size {self.text_config.vocab_size}")
        return self

    def save(self, path: Path) -> None:
        """Write config.json with the released names and those that transformers and the engines built on it look for.
        In theirs, a video's pads have an id of their own: the first after the vocabulary, which is their default."""
        raw = self.model_dump(exclude_none=True)
        vision, pad = raw["vision_config"], self.media_placeholder_token_id
        vision |= {alias: vision[key] for key, alias in VISION_ALIASES.items()}
        if "quantization_config" in raw:
            raw["text_config"]["quantization_config"] = raw["quantization_config"]
        raw |= {
            "auto_map": AUTO_MAP,
            "torch_dtype": self.dtype,
            "image_token_id": pad,
            "video_token_id": self.text_config.vocab_size,
            "vision_start_token_id": pad - 3,  # <|media_begin|>
            "vision_end_token_id": pad - 1,  # <|media_end|>
            "projection_hidden_size": self.vision_config.mm_hidden_size,
            "projection_layer_norm_eps": self.vision_config.projector_ln_eps,
        }
        path.write_text(json.dumps(raw, indent=2) + "\n")


def parse_config(text: str, where: str) -> ModelConfig:
    """Read config.json text.

    Raises:
        MoonflowError: naming ``where`` and the first offending key.
    """
    try:
        return ModelConfig.model_validate(read_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        told = f"{key}: {first['msg'].removeprefix('Value error, ')}"
        if first["type"] != "value_error":  # whose message says what it is about
            told += f", not {str(first['input'])[:60]!r}"
    except (ValueError, RecursionError) as error:
        told = f"it is not JSON ({error})"
    raise MoonflowError(f"{where} is not a usable model config: {told}")


def load_config(path: Path) -> ModelConfig:
    """Read a config.json file; raises MoonflowError when it is missing or wrong."""
    if not path.is_file():
        raise MoonflowError(f"no model config at {path}; a checkpoint folder holds config.json")
    if path.stat().st_size > bounds.MAX_BYTES:
        raise MoonflowError(f"{path} is not a usable model config: it has more than {bounds.MAX_BYTES:,} bytes")
    return parse_config(path.read_bytes().decode(errors="replace"), str(path))


def preset(name: str) -> ModelConfig:
    """One of ``model/network/presets``: tiny, small, k25. Raises MoonflowError for any other name."""
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise MoonflowError(f"unknown model preset {name!r}; choose one of {known}")
    return load_config(path)
