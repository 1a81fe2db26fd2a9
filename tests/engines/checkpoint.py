"""A moonflow export of a shape that the stock engines take on a CPU.

The per-head MLA sizes are the released ones (latent 512, 128 + 64, values 128), as the engines' kernels expect; width,
layers and experts are few. Its weights are random and large: the likeliest token then leads the second by more than
float32's rounding, and depends on the whole prompt.
"""

from __future__ import annotations

from pathlib import Path

from model.checkpoint.export import export
from model.network.config import ModelConfig, RopeScaling, preset
from model.network.initial import new_model
from tests.drawn import randomise
from tests.tiny_folders import tiny_tokenizer

CONTEXT = 1024
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "q_lora_rank": 128,
    "max_position_embeddings": CONTEXT,
}
YARN = RopeScaling(factor=4.0, original_max_position_embeddings=CONTEXT // 4)
VISION = {
    "vt_hidden_size": 128,
    "vt_num_hidden_layers": 2,
    "vt_num_attention_heads": 4,
    "vt_intermediate_size": 256,
    "init_pos_emb_height": 16,
    "init_pos_emb_width": 16,
    "mm_hidden_size": 128,
    "text_hidden_size": 256,
}
TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def engine_config(rope_scaling: RopeScaling | None) -> ModelConfig:
    """``small`` with fewer and narrower layers, and the vocabulary of ``tiny``, whose tokenizer trains in seconds."""
    small, tiny = preset("small"), preset("tiny")
    ids = {
        key: getattr(tiny.text_config, key) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    return tiny.model_copy(
        update={
            "text_config": small.text_config.model_copy(update=TEXT | ids | {"rope_scaling": rope_scaling}),
            "vision_config": small.vision_config.model_copy(update=VISION),
        }
    )


def write_export(folder: Path, seed: int, rope_scaling: RopeScaling | None = YARN) -> Path:
    """The folder that a serving engine is given, in float32."""
    model = new_model(engine_config(rope_scaling))
    randomise(model, seed, std=0.1)
    export(model, tiny_tokenizer(), folder)
    return folder
