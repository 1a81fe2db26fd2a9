"""Multi-head latent attention with YaRN rotary positions (source: K2 Table 2; DeepSeek-V3 conventions).

A cache of keys and values holds, per layer and token, the normalised kv latent and the rotated rope key: C + R numbers
instead of H * (K + V). A decode step never expands them: the key half of ``kv_b_proj`` is folded into the query, the
value half is applied after the attention (DeepSeek-V2 section 2.1, absorbed).

Shapes: B rows, T tokens in a row, P earlier tokens of the row, S = P + T, H heads, h heads of this rank (H unless ranks
share the rows), D hidden, I = nope dims, R = rope dims, r = R / 2, K = I + R, V = value dims, U = I + V, C = kv latent,
W = C + R, x heads times their dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import RopeScaling, TextConfig
from model.network.documents import Documents
from model.network.forward_context import PLAIN, ForwardContext
from model.network.operations.choice import attends_by_products
from model.network.packed_attention import CHUNK, LONGEST, PackedAttention
from model.network.precision import RMSNorm, linear


def rope_frequencies_r(config: TextConfig) -> Tensor:
    """Angles per position, float32 [r]; YaRN blends interpolated and original frequencies by wavelength.

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


def rotate(x_BTHR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotate interleaved pairs (x0, x1), (x2, x3), ... by the angle of their token; cos and sin are [B, T, r]."""
    even, odd = x_BTHR[..., 0::2], x_BTHR[..., 1::2]
    cos, sin = cos_BTr.unsqueeze(2), sin_BTr.unsqueeze(2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_BTHR.dtype)


def _rotated_key(rope_BTR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    return rotate(rope_BTR.unsqueeze(2), cos_BTr, sin_BTr).squeeze(2)


class Rotary(nn.Module):
    """cos and sin [B, T, r] of positions [B, T], in float32."""

    frequencies_r: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.register_buffer("frequencies_r", rope_frequencies_r(config), persistent=False)

    def forward(self, position_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        angles_BTr = position_ids_BT.unsqueeze(-1).float() * self.frequencies_r
        return angles_BTr.cos(), angles_BTr.sin()


@dataclass(frozen=True)
class CachedLatents:
    """One layer's cache of rows that get one more token each.

    Attributes:
        latents_BWT: latent and rope key of each token; the forward adds the new tokens' to it.
        lengths_B: int64; how many tokens of each row are in the cache already.
        bias_B1T: added to the scores: 0 up to the new token, itself included, and minus infinity after it.
    """

    latents_BWT: Tensor
    lengths_B: Tensor
    bias_B1T: Tensor


@dataclass(frozen=True)
class Past:
    """One layer's cache of rows that get several more tokens each.

    Attributes:
        latents_BPW: latent and rope key of the earlier tokens.
        mask_B1TS: bool; whether a new token (third axis) attends to an earlier or a new one (fourth).
    """

    latents_BPW: Tensor
    mask_B1TS: Tensor


class MultiheadLatentAttention(nn.Module):
    """Attention whose queries, keys and values pass through low-rank latents; one rope key is shared by all heads.

    In training it keeps ``max_logit_H``, the largest scaled logit of each head in the last forward, for MuonClip. Where
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
        self.max_logit_H: Tensor | None = None

    def forward(
        self,
        x_BTD: Tensor,
        cos_BTr: Tensor,
        sin_BTr: Tensor,
        seen: Documents | CachedLatents | Past,
        context: ForwardContext = PLAIN,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Attention outputs [B, T, D].

        Args:
            x_BTD: where ranks share the rows (``context.sequence``), x and the result are this rank's columns; cos, sin
                and ``seen`` are those of whole rows.
            seen: what the tokens attend to: the documents of their rows; or earlier tokens of the cache and one
                another; or, in a decode step with one token per row, the cache of the earlier tokens.
            kept: if given, the tokens' cache entries [B, T, W] are appended to it.
        """
        if isinstance(seen, CachedLatents):
            return self._decode(x_BTD, cos_BTr, sin_BTr, seen)
        q_BTx = self._project_queries(x_BTD, context.products)
        c_BTC, rope_BTR = self._project_latents(x_BTD, context.products)
        if kept is not None:
            kept.append(torch.cat((c_BTC, _rotated_key(rope_BTR, cos_BTr, sin_BTr)), dim=-1))
        if isinstance(seen, Past):
            key_BTR = _rotated_key(rope_BTR, cos_BTr, sin_BTr)
            return self._attend_to_past(self._rotated_queries(q_BTx, cos_BTr, sin_BTr), c_BTC, key_BTR, seen, context)
        kv_BTx = linear(c_BTC, self.kv_b_proj, context.products)
        sharing, heads = context.sequence, self.config.num_attention_heads
        if sharing is not None:
            heads = sharing.heads_of(heads)
            q_BTx, kv_BTx, rope_BTR = sharing.to_heads(q_BTx, kv_BTx, rope_BTR)
        projected = (q_BTx, kv_BTx, rope_BTR, cos_BTr, sin_BTr)
        largest_h: Tensor | None
        if attends_by_products(seen, context.products):
            out_BTx, largest_h = self._attend_by_products(heads, *projected, seen)
        else:
            out_BTx, largest_h = self._attend(heads, *projected, seen)
        if sharing is not None:
            out_BTx = sharing.to_columns(out_BTx)
        if self.training:
            assert largest_h is not None
            self.max_logit_H = largest_h if sharing is None else sharing.of_all_heads(largest_h)
        return linear(out_BTx, self.o_proj, context.products)

    def queries(self, x_BTD: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
        """Queries [B, T, H, K] in the dtype of the weights, their rope part rotated."""
        return self._rotated_queries(self._project_queries(x_BTD, None), cos_BTr, sin_BTr)

    def latents(self, x_BTD: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens' cache entries: the normalised kv latents [B, T, C] and the rotated rope keys [B, T, R]."""
        c_BTC, rope_BTR = self._project_latents(x_BTD, None)
        return c_BTC, _rotated_key(rope_BTR, cos_BTr, sin_BTr)

    def _project_queries(self, x_BTD: Tensor, products: torch.dtype | None) -> Tensor:
        low = self.q_a_layernorm(linear(x_BTD, self.q_a_proj, products), products)
        return linear(low, self.q_b_proj, products)

    def _project_latents(self, x_BTD: Tensor, products: torch.dtype | None) -> tuple[Tensor, Tensor]:
        c_BTC, rope_BTR = linear(x_BTD, self.kv_a_proj_with_mqa, products).split(
            (self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1
        )
        return self.kv_a_layernorm(c_BTC, products), rope_BTR

    def _rotated_queries(self, q_BTx: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
        config = self.config
        q_BTHK = q_BTx.unflatten(-1, (-1, config.qk_head_dim))
        nope, rope = q_BTHK.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return torch.cat((nope, rotate(rope, cos_BTr, sin_BTr)), dim=-1)

    def _decode(self, x_BTD: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, cache: CachedLatents) -> Tensor:
        """Outputs [B, 1, D] of one query per row over that row's latents, its own included."""
        config, latents_BWT = self.config, cache.latents_BWT
        rows_B = torch.arange(len(x_BTD), device=x_BTD.device)
        latents_BWT[rows_B, :, cache.lengths_B] = torch.cat(self.latents(x_BTD, cos_BTr, sin_BTr), dim=-1)[:, 0]
        q_BHK = self.queries(x_BTD, cos_BTr, sin_BTr)[:, 0]
        kv_HUC = self.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
        key_HIC, value_HVC = kv_HUC.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        nope_BHI, rope_BHR = q_BHK.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        nope_BHC = torch.bmm(nope_BHI.transpose(0, 1), key_HIC).transpose(0, 1)
        query_BHW = torch.cat((nope_BHC, rope_BHR), dim=-1)
        scores_BHT = torch.baddbmm(cache.bias_B1T, query_BHW, latents_BWT, alpha=config.softmax_scale)
        out_BHC = torch.bmm(scores_BHT.softmax(-1), latents_BWT[:, : config.kv_lora_rank].mT)
        out_BHV = torch.bmm(out_BHC.transpose(0, 1), value_HVC.transpose(1, 2)).transpose(0, 1)
        return self.o_proj(out_BHV.flatten(1)).unsqueeze(1)

    def _attend_by_products(
        self, heads: int, q_BTx: Tensor, kv_BTx: Tensor, rope_BTR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor,
        documents: Documents,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Outputs [B, T, h * V] and largest logits [h] of the heads that the projections have."""
        config = self.config
        sizes, rotation = (heads, config.qk_nope_head_dim, config.v_head_dim), (cos_BTr, sin_BTr, documents.first_BT)
        return PackedAttention.apply(q_BTx, kv_BTx, rope_BTR, *rotation, sizes, config.softmax_scale)

    def _attend(
        self, heads: int, q_BTx: Tensor, kv_BTx: Tensor, rope_BTR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor,
        documents: Documents,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Outputs [B, T, h * V] and, in training, largest logits [h] of the heads that the projections have."""
        config = self.config
        q_BTHK = self._rotated_queries(q_BTx, cos_BTr, sin_BTr)
        k_BTHK, v_BTHV = self._keys_and_values(heads, kv_BTx, _rotated_key(rope_BTR, cos_BTr, sin_BTr))
        largest_h = self._max_logit(q_BTHK.detach(), k_BTHK.detach(), documents) if self.training else None
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHV.transpose(1, 2)
        out_BHTV = _attend(q, k, v, documents, config.softmax_scale)
        return out_BHTV[..., : config.v_head_dim].transpose(1, 2).flatten(2), largest_h

    def _keys_and_values(self, heads: int, kv_BTx: Tensor, key_BTR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, T, h, K], and values [B, T, h, V or more]."""
        config = self.config
        nope_BThI, v_BThV = kv_BTx.unflatten(-1, (heads, -1)).split((config.qk_nope_head_dim, config.v_head_dim), -1)
        k_BThK = torch.cat((nope_BThI, key_BTR.unsqueeze(2).expand(-1, -1, heads, -1)), dim=-1)
        # Fused CPU and GPU kernels want one head size for q, k and v: zero columns of v change nothing.
        pad = config.qk_head_dim - config.v_head_dim
        return k_BThK, F.pad(v_BThV, (0, pad)) if pad > 0 else v_BThV

    def _attend_to_past(
        self, q_BTHK: Tensor, c_BTC: Tensor, key_BTR: Tensor, past: Past, context: ForwardContext
    ) -> Tensor:
        """Outputs [B, T, D] of queries over the cache of earlier tokens and their own latents and rope keys."""
        config = self.config
        c_BPC, key_BPR = past.latents_BPW.to(c_BTC.dtype).split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        kv_BSx = linear(torch.cat((c_BPC, c_BTC), dim=1), self.kv_b_proj, context.products)
        key_BSR = torch.cat((key_BPR, key_BTR), dim=1)
        k_BSHK, v_BSHV = self._keys_and_values(config.num_attention_heads, kv_BSx, key_BSR)
        q, k, v = q_BTHK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHV.transpose(1, 2)
        mask, scale = past.mask_B1TS, config.softmax_scale
        out_BHTV = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., : config.v_head_dim]
        return linear(out_BHTV.transpose(1, 2).flatten(2), self.o_proj, context.products)

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
    """Fused attention [B, h, T, V]; memory is linear in T, except for the mask of short rows with several documents."""
    if documents.whole_rows:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTV, is_causal=True, scale=scale)
    if documents.tokens <= LONGEST:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTV, attn_mask=documents.mask_B1TT, scale=scale)
    # Split and cat, not slices: the backward of each slice would fill a gradient as long as all rows.
    lengths = [end - start for _, start, end in documents.segments]
    split = [x.transpose(0, 1).flatten(1, 2).unsqueeze(0).split(lengths, dim=2) for x in (q_BHTK, k_BHTK, v_BHTV)]
    outs_1HTV = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in zip(*split, strict=True)
    ]
    return torch.cat(outs_1HTV, dim=2).squeeze(0).unflatten(1, (documents.rows, -1)).transpose(0, 1)


def _largest(q_TK: Tensor, k_TK: Tensor) -> float:
    """The largest causal product of one document, ``CHUNK`` queries at a time."""
    largest = -math.inf
    for start in range(0, len(q_TK), CHUNK):
        end = min(start + CHUNK, len(q_TK))
        scores = q_TK[start:end] @ k_TK[:end].T
        seen = torch.ones_like(scores, dtype=torch.bool).tril(start)
        largest = max(largest, float(scores.masked_fill(~seen, -torch.inf).max()))
    return largest
