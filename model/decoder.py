"""The language model: DeepSeek-V3 decoder layers, first dense, then mixture of experts (source: K2 Table 2).

Shapes: B rows, T tokens in a row, D hidden, R = rope dims / 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import MultiheadLatentAttention, Rotary
from model.config import TextConfig
from model.documents import Documents
from model.moe import MixtureOfExperts, SwiGLU
from model.precision import RMSNorm, add_norm
from model.reading import read, reads_by_kernels


class DecoderLayer(nn.Module):
    """Pre-norm attention and FFN, each with a residual."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = MultiheadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        dense = index < config.first_k_dense_replace or index % config.moe_layer_freq != 0
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(self, x_BTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, documents: Documents) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), cos_BTR, sin_BTR, documents)
        x_BTD, normed_BTD = add_norm(x_BTD, attended_BTD, self.post_attention_layernorm)
        return x_BTD + self.mlp(normed_BTD).to(x_BTD.dtype)


class Decoder(nn.Module):
    """Embeddings in, normalised hidden states out; [B, T, D] both."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = Rotary(config)

    def forward(self, x_BTD: Tensor, position_ids_BT: Tensor, documents: Documents) -> Tensor:
        """Where ranks share the rows, x holds this rank's columns; positions and documents are those of whole rows.

        Raises:
            ValueError: positions and documents are of different rows.
        """
        if position_ids_BT.shape != (documents.rows, documents.tokens):
            rows = f"{documents.rows} rows of {documents.tokens} tokens"
            raise ValueError(f"positions {list(position_ids_BT.shape)}, and documents of {rows}")
        cos_BTR, sin_BTR = self.rotary(position_ids_BT)
        if reads_by_kernels(self, x_BTD, documents):
            return read(self, x_BTD, cos_BTR, sin_BTR, documents)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTR, sin_BTR, documents)
        return self.norm(x_BTD)


class CausalLM(nn.Module):
    """Decoder and untied head, under the released names ``model.*`` and ``lm_head``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
