"""Multi-head latent attention with YaRN rotary positions (source: K2 Table 2; DeepSeek-V3 conventions).

Shapes: B rows, T tokens in a row, H heads, D hidden, N = nope dims, R = rope dims, K = N + R, V = value dims,
C = kv latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RopeScaling, TextConfig
from model.documents import Documents
from model.packed_attention import CHUNK, LONGEST, PackedAttention, attends_by_products
from model.precision import RMSNorm, linear
from model.sequence_parallel import sequence_group


def rope_frequencies_r(config: TextConfig) -> Tensor:
    """Angles per position, float32 [R/2]; YaRN blends interpolated and original frequencies by wavelength.

    Source: YaRN (arXiv 2309.00071) as DeepSeek-V3 applies it.
    """
    dims, scaling = config.qk_rope_head_dim, config.rope_scaling
    frequencies_r = config.rope_theta ** -(torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    if scaling is None:
        return frequencies_r.float()
    low, high = (
        _rotation_dim(beta, dims, config.rope_theta, scaling) for beta in (scaling.beta_fast, scaling.beta_slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), dims - 1)
    ramp_r = ((torch.arange(dims // 2, dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0, 1)
    return (frequencies_r / scaling.factor * ramp_r + frequencies_r * (1 - ramp_r)).float()


def _rotation_dim(rotations: float, dims: int, theta: float, scaling: RopeScaling) -> float:
    """The (fractional) pair index that turns ``rotations`` times over the original context."""
    return dims * math.log(scaling.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def rotate(x_BTHR: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    """Rotate interleaved pairs (x0, x1), (x2, x3), ... by the angle of their token; cos and sin are [B, T, R/2]."""
    even, odd = x_BTHR[..., 0::2], x_BTHR[..., 1::2]
    cos, sin = cos_BTR.unsqueeze(2), sin_BTR.unsqueeze(2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_BTHR.dtype)


class Rotary(nn.Module):
    """cos and sin [B, T, R/2] of positions [B, T]."""

    frequencies_r: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.register_buffer("frequencies_r", rope_frequencies_r(config), persistent=False)

    def forward(self, position_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        angles_BTR = position_ids_BT.unsqueeze(-1).float() * self.frequencies_r
        return angles_BTR.cos(), angles_BTR.sin()


class MultiheadLatentAttention(nn.Module):
    """Queries and keys-values pass through low-rank latents; one rope key is shared by all heads.

    In training it keeps ``max_logit_h``, the largest scaled logit of each head in the last forward, for MuonClip. Where
    a fused kernel hides the logits, a Cauchy-Schwarz bound is computed first, and the exact maximum only where that
    bound passes ``clip_threshold``.
    """

    clip_threshold = 100.0

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=config.rms_norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.kv_lora_rank + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, eps=config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)
        self.max_logit_h: Tensor | None = None

    def _project_queries(self, x_BTD: Tensor) -> Tensor:
        return linear(self.q_a_layernorm(linear(x_BTD, self.q_a_proj)), self.q_b_proj)

    def _project_latents(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        c_BTC, rope_BTR = linear(x_BTD, self.kv_a_proj_with_mqa).split(
            (self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1
        )
        return self.kv_a_layernorm(c_BTC), rope_BTR

    def _turned_queries(self, q_BTx: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
        config = self.config
        q_BTHK = q_BTx.unflatten(-1, (-1, config.qk_head_dim))
        nope, rope = q_BTHK.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return torch.cat((nope, rotate(rope, cos_BTR, sin_BTR)), dim=-1)

    def queries(self, x_BTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
        """[B, T, H, K], rope part rotated."""
        return self._turned_queries(self._project_queries(x_BTD), cos_BTR, sin_BTR)

    def latents(self, x_BTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> tuple[Tensor, Tensor]:
        """What a cache holds per token: the normalised kv latent [B, T, C] and the rotated rope key [B, T, R]."""
        c_BTC, rope_BTR = self._project_latents(x_BTD)
        return c_BTC, rotate(rope_BTR.unsqueeze(2), cos_BTR, sin_BTR).squeeze(2)

    def forward(self, x_BTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, documents: Documents) -> Tensor:
        """Where ranks share the rows (``model.sequence_parallel``), x and the result are this rank's columns; cos, sin
        and ``documents`` are of whole rows."""
        q_BTx = self._project_queries(x_BTD)
        c_BTC, rope_BTR = self._project_latents(x_BTD)
        kv_BTx = linear(c_BTC, self.kv_b_proj)
        sharing, heads = sequence_group(), self.config.num_attention_heads
        if sharing is not None:
            heads = sharing.heads_of(heads)
            q_BTx, kv_BTx, rope_BTR = sharing.to_heads(q_BTx, kv_BTx, rope_BTR)
        out_BTx, largest_h = self._attend(heads, q_BTx, kv_BTx, rope_BTR, cos_BTR, sin_BTR, documents)
        if sharing is not None:
            out_BTx = sharing.to_columns(out_BTx)
        if self.training:
            assert largest_h is not None
            self.max_logit_h = largest_h if sharing is None else sharing.of_all_heads(largest_h)
        return linear(out_BTx, self.o_proj)

    def _attend(
        self,
        heads: int,
        q_BTx: Tensor,
        kv_BTx: Tensor,
        rope_BTR: Tensor,
        cos_BTR: Tensor,
        sin_BTR: Tensor,
        documents: Documents,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs [B, T, H * V] and, in training, largest logits [H], of the heads that the projections have."""
        config = self.config
        if attends_by_products(documents):
            sizes = (heads, config.qk_nope_head_dim, config.v_head_dim)
            turned = (cos_BTR, sin_BTR, documents.first_BT)
            return PackedAttention.apply(q_BTx, kv_BTx, rope_BTR, *turned, sizes, config.softmax_scale)
        q_BTHK = self._turned_queries(q_BTx, cos_BTR, sin_BTR)
        k_rope_BT1R = rotate(rope_BTR.unsqueeze(2), cos_BTR, sin_BTR)
        kv = kv_BTx.unflatten(-1, (heads, -1))
        k_nope_BTHN, v_BTHV = kv.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        k_BTHK = torch.cat((k_nope_BTHN, k_rope_BT1R.expand(-1, -1, heads, -1)), dim=-1)
        largest_h = self._max_logit(q_BTHK.detach(), k_BTHK.detach(), documents) if self.training else None
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHV.transpose(1, 2)
        # Fused CPU and GPU kernels want one head size for q, k and v: zero columns of v change nothing.
        pad = config.qk_head_dim - config.v_head_dim
        v = F.pad(v, (0, pad)) if pad > 0 else v
        out_BHTV = _attend(q, k, v, documents, config.softmax_scale)
        return out_BHTV[..., : config.v_head_dim].transpose(1, 2).flatten(2), largest_h

    @torch.no_grad()
    def _max_logit(self, q_BTHK: Tensor, k_BTHK: Tensor, documents: Documents) -> Tensor:
        scale = self.config.softmax_scale
        bound_h = q_BTHK.norm(dim=-1).amax((0, 1)) * k_BTHK.norm(dim=-1).amax((0, 1)) * scale
        if bound_h.max() <= self.clip_threshold:
            return bound_h
        exact_h = bound_h.clone()
        for head in (bound_h > self.clip_threshold).nonzero().flatten().tolist():
            q_BTK, k_BTK = q_BTHK[:, :, head], k_BTHK[:, :, head]
            exact_h[head] = max(_largest(q_BTK[row, a:b], k_BTK[row, a:b]) for row, a, b in documents.segments) * scale
        return exact_h


def _attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, documents: Documents, scale: float) -> Tensor:
    """Fused attention [B, H, T, V]; memory grows with T, but for the mask of several documents in a short row."""
    if documents.whole_rows:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTV, is_causal=True, scale=scale)
    if documents.tokens <= LONGEST:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTV, attn_mask=documents.mask_B1TT, scale=scale)
    # Split and cat, not slices: the backward of each slice would be as long as all rows.
    lengths = [end - start for _, start, end in documents.segments]
    split = [x.transpose(0, 1).flatten(1, 2).unsqueeze(0).split(lengths, dim=2) for x in (q_BHTK, k_BHTK, v_BHTV)]
    outs_1HTV = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in zip(*split, strict=True)
    ]
    return torch.cat(outs_1HTV, dim=2).squeeze(0).unflatten(1, (documents.rows, -1)).transpose(0, 1)


def _largest(q_TK: Tensor, k_TK: Tensor) -> float:
    """The largest causal product of one document, some hundred queries at a time."""
    largest = -math.inf
    for start in range(0, len(q_TK), CHUNK):
        end = min(start + CHUNK, len(q_TK))
        scores = q_TK[start:end] @ k_TK[:end].T
        seen = torch.ones_like(scores, dtype=torch.bool).tril(start)
        largest = max(largest, float(scores.masked_fill(~seen, -torch.inf).max()))
    return largest
