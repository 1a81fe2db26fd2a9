"""Prefill and decode over cached MLA latents, on the network's modules (source: DeepSeek-V2 section 2.1, absorbed).

A cache row holds, per layer and token, the normalised kv latent and the rotated rope key: C + R numbers instead of
H * (K + V). Decoding never expands them: the key half of ``kv_b_proj`` is folded into the query, the value half is
applied after the attention.

Batch invariance on the CPU (ours): kernels compute a row alike, bit for bit, whatever shares the batch, if a product
has four rows or more (else it becomes a matrix-vector one), element-wise work is whole vectors (else its tail is
scalar), and sums over the context are cut at fixed places. So rows are padded to a multiple of 4 and spans to one of
32, and values are summed 128 tokens at a time. ``tests/rollout`` compares the bits.

Shapes: B rows, T tokens in a row, D hidden, H heads, N nope dims, R rope dims, C kv latent, V value dims (or the
vocabulary where it ends logits), L layers, E experts, S = tokens * K token-expert pairs sorted by expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import MultiheadLatentAttention
from model.decoder import Decoder, DecoderLayer
from model.documents import Documents
from model.moe import Experts, MixtureOfExperts
from model.multimodal import KimiK25
from model.packed_attention import looks
from model.precision import product_dtype, products_in

MIN_ROWS = 4
SPAN = 32
VALUE_SPAN = 128


def round_up(tokens: int) -> int:
    """To a whole number of spans."""
    return -(-tokens // SPAN) * SPAN


class LatentCache:
    """Latents [L, rows, capacity, C + R] of up to ``rows`` sequences; grows in capacity as sequences need it."""

    def __init__(self, model: KimiK25, rows: int) -> None:
        config = model.config.text_config
        weight = model.language_model.lm_head.weight
        self.latents = weight.new_zeros(
            config.num_hidden_layers, rows + -rows % MIN_ROWS, SPAN, config.kv_lora_rank + config.qk_rope_head_dim
        ).detach()

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` in every row."""
        missing = round_up(tokens) - self.latents.shape[2]
        if missing > 0:
            self.latents = F.pad(self.latents, (0, 0, 0, missing))

    def store(self, row: int, latents: Tensor) -> None:
        """Put a prefilled sequence's latents [L, T, C + R] into ``row``."""
        self.latents[:, row, : latents.shape[1]] = latents

    def move(self, source: int, target: int) -> None:
        self.latents[:, target] = self.latents[:, source]


def prefill(model: KimiK25, x_BTD: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read prompts, padded on the right to a common whole number of spans.

    Args:
        x_BTD: embedded prompts; what stands after a prompt's end is not looked at by it. Inside ``products_in`` the
            network is that of training, and a row is no longer computed alike whatever shares the batch.
        lengths: tokens of each prompt.

    Returns:
        Latents [L, B, T, C + R] and the last tokens' logits [B, V].
    """
    decoder = model.language_model.model
    rows, tokens = x_BTD.shape[:2]
    positions_BT = torch.arange(tokens, device=x_BTD.device).expand(rows, -1)
    documents = Documents(rows, tokens, x_BTD.device)
    seen = looks(documents, decoder.heads)
    feed_forward = _feed_forward if product_dtype() is None else lambda mlp, x: mlp(x)
    cos_BTR, sin_BTR = decoder.rotary(positions_BT)
    latents = []
    for layer in _layers(decoder):
        normed_BTD = layer.input_layernorm(x_BTD)
        latents.append(torch.cat(layer.self_attn.latents(normed_BTD, cos_BTR, sin_BTR), dim=-1))
        x_BTD = x_BTD + layer.self_attn(normed_BTD, cos_BTR, sin_BTR, seen).to(x_BTD.dtype)
        x_BTD = x_BTD + feed_forward(layer.mlp, layer.post_attention_layernorm(x_BTD)).to(x_BTD.dtype)
    last = torch.tensor(lengths, device=x_BTD.device) - 1
    with products_in(None):
        hidden_BD = decoder.norm(x_BTD[torch.arange(rows, device=x_BTD.device), last])
        return torch.stack(latents), _logits(model, hidden_BD)


def decode(model: KimiK25, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """One step of rows 0 .. B-1: append each row's newest token to the cache and return its logits [B, V].

    Args:
        tokens: the newest token of each row.
        lengths: how many tokens each row has in the cache already.
    """
    decoder = model.language_model.model
    idle = -len(tokens) % MIN_ROWS
    device = cache.latents.device
    ids_B = torch.tensor([*tokens, *[0] * idle], device=device)
    lengths_B = torch.tensor([*lengths, *[0] * idle], device=device)
    rows_B = torch.arange(len(ids_B), device=device)
    span = round_up(max(lengths) + 1)
    bias_B1T = torch.zeros(len(ids_B), 1, span, device=device, dtype=cache.latents.dtype)
    bias_B1T.masked_fill_((torch.arange(span, device=device) > lengths_B[:, None]).unsqueeze(1), -torch.inf)
    cos_BTR, sin_BTR = decoder.rotary(lengths_B[:, None])
    x_BTD = decoder.embed_tokens(ids_B)[:, None]
    for layer, latents in zip(_layers(decoder), cache.latents, strict=True):
        attention = layer.self_attn
        normed_BTD = layer.input_layernorm(x_BTD)
        latents[rows_B, lengths_B] = torch.cat(attention.latents(normed_BTD, cos_BTR, sin_BTR), dim=-1)[:, 0]
        q_BHK = attention.queries(normed_BTD, cos_BTR, sin_BTR)[:, 0]
        x_BTD = x_BTD + _absorbed(attention, q_BHK, latents[: len(ids_B), :span], bias_B1T)[:, None]
        x_BTD = x_BTD + _feed_forward(layer.mlp, layer.post_attention_layernorm(x_BTD))
    return _logits(model, decoder.norm(x_BTD[:, 0]))[: len(tokens)]


def _layers(decoder: Decoder) -> Iterator[DecoderLayer]:
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        yield layer


def _absorbed(attention: MultiheadLatentAttention, q_BHK: Tensor, latents: Tensor, bias_B1T: Tensor) -> Tensor:
    """Attention output [B, D] of one query per row over that row's latents [B, T, C + R]."""
    config = attention.config
    kv_HxC = attention.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
    key_HNC, value_HVC = kv_HxC.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
    nope_BHN, rope_BHR = q_BHK.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
    nope_BHC = torch.bmm(nope_BHN.transpose(0, 1), key_HNC).transpose(0, 1)
    scores_BHT = torch.baddbmm(
        bias_B1T, torch.cat((nope_BHC, rope_BHR), dim=-1), latents.transpose(1, 2), alpha=config.softmax_scale
    )
    out_BHC = _weighted_sum(scores_BHT.softmax(-1), latents[..., : config.kv_lora_rank])
    out_BHV = torch.bmm(out_BHC.transpose(0, 1), value_HVC.transpose(1, 2)).transpose(0, 1)
    return attention.o_proj(out_BHV.flatten(1))


def _weighted_sum(probs_BHT: Tensor, latents_BTC: Tensor) -> Tensor:
    parts = zip(probs_BHT.split(VALUE_SPAN, dim=2), latents_BTC.split(VALUE_SPAN, dim=1), strict=True)
    out_BHC = torch.bmm(*next(parts))
    for probs, values in parts:
        out_BHC.baddbmm_(probs, values)
    return out_BHC


def _feed_forward(mlp: nn.Module, x_BTD: Tensor) -> Tensor:
    if not isinstance(mlp, MixtureOfExperts):
        return mlp(x_BTD)
    chosen_NK, weights_NK = mlp.gate(x_BTD)
    routed_ND = _routed(mlp.experts, x_BTD.flatten(0, 1), weights_NK, chosen_NK)
    return routed_ND.view_as(x_BTD) + mlp.shared_experts(x_BTD)


def _routed(experts: Experts, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    """As ``Experts.forward``, with at least ``MIN_ROWS`` rows in each expert's product."""
    k = chosen_NK.shape[1]
    order_S = chosen_NK.flatten().argsort(stable=True)
    counts = chosen_NK.flatten().bincount(minlength=len(experts.gate_up_proj)).tolist()
    token_S = order_S.new_zeros(len(order_S) + MIN_ROWS)
    torch.div(order_S, k, rounding_mode="floor", out=token_S[: len(order_S)])
    x_SD = x_ND.index_select(0, token_S)
    y_SD = torch.empty_like(x_SD)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            # Borrowed rows of the next experts are computed for nothing, and overwritten by theirs.
            end = start + max(count, MIN_ROWS)
            gate_SF, up_SF = torch.mm(x_SD[start:end], experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            torch.mm(F.silu(gate_SF) * up_SF, experts.down_proj[expert].T, out=y_SD[start:end])
            start += count
    place_NK = (
        torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device)).view(-1, k)
    )
    return F.embedding_bag(place_NK, y_SD, mode="sum", per_sample_weights=weights_NK.to(y_SD.dtype))


def _logits(model: KimiK25, hidden_BD: Tensor) -> Tensor:
    rows = len(hidden_BD)
    if rows < MIN_ROWS:
        hidden_BD = F.pad(hidden_BD, (0, 0, 0, MIN_ROWS - rows))
    return model.language_model.lm_head(hidden_BD)[:rows].float()
