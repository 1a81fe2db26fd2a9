"""Prefill and decode over cached MLA latents (source: DeepSeek-V2 section 2.1, absorbed).

A cache column holds, per layer and token, the normalised kv latent and the rotated rope key: C + R numbers instead of
H * (K + V). Decoding never expands them: the key half of ``kv_b_proj`` is folded into the query, the value half is
applied after the attention. On a CPU a step is ``model.kernels.decoding``; elsewhere it is torch's operators.

Batch invariance on the CPU (ours): a step's kernels compute a row alike, bit for bit, whatever shares the batch. So do
torch's of the prefill, with one intra-op thread, if a product has 16 rows or more (with fewer, the BLAS takes another
way through it: below 4 on AMD's processors, below 16 on Intel's) and element-wise work is whole vectors (else its tail
is scalar): prompts are padded to a multiple of 32 tokens, and products to 16 rows. ``tests/rollout`` compares the bits.

Shapes: B rows, T tokens in a row, D hidden, H heads, N nope dims, R rope dims, K = N + R, C kv latent, W = C + R,
V value dims (or the vocabulary where it ends logits), L layers, E experts, S = tokens * K token-expert pairs sorted by
expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import MultiheadLatentAttention
from model.decoder import Decoder, DecoderLayer
from model.documents import Documents
from model.kernels import decoding as kernels
from model.kernels.numbers import Array, array
from model.moe import Experts, MixtureOfExperts, SwiGLU
from model.multimodal import KimiK25
from model.precision import product_dtype
from model.rollout.threads import RowThreads

PRODUCT_ROWS = 16  # of torch's products, see above
SPAN = 32


def round_up(tokens: int) -> int:
    """To a whole number of spans."""
    return -(-tokens // SPAN) * SPAN


class LatentCache:
    """Latents [L, rows, W, capacity] of up to ``rows`` sequences; grows in capacity as sequences need it."""

    def __init__(self, model: KimiK25, rows: int) -> None:
        config = model.config.text_config
        weight = model.language_model.lm_head.weight
        self.latents = weight.new_zeros(
            config.num_hidden_layers, rows + -rows % kernels.ROWS, config.kv_lora_rank + config.qk_rope_head_dim, SPAN
        ).detach()

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` in every row."""
        missing = round_up(tokens) - self.latents.shape[3]
        if missing > 0:
            self.latents = F.pad(self.latents, (0, missing))

    def store(self, row: int, latents: Tensor) -> None:
        """Put a prefilled sequence's latents [L, T, W] into ``row``."""
        self.latents[:, row, :, : latents.shape[1]] = latents.mT

    def move(self, source: int, target: int) -> None:
        self.latents[:, target] = self.latents[:, source]


@contextmanager
def evaluating(model: KimiK25) -> Iterator[None]:
    """A shared model in training would count what it reads here as training load; its mode is back afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def prefill(decoder: Decoder, x_BTD: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read prompts, padded on the right to a common whole number of spans.

    Args:
        x_BTD: embedded prompts; what stands after a prompt's end is not looked at by it. Inside ``products_in`` the
            network is that of training, and a row is no longer computed alike whatever shares the batch.
        lengths: tokens of each prompt.

    Returns:
        Latents [L, B, T, W] and the last tokens' hidden states [B, D], for ``logits``.
    """
    rows, tokens = x_BTD.shape[:2]
    positions_BT = torch.arange(tokens, device=x_BTD.device).expand(rows, -1)
    documents = Documents(rows, tokens, x_BTD.device)
    feed_forward = _feed_forward if product_dtype() is None else lambda mlp, x: mlp(x)
    cos_BTR, sin_BTR = decoder.rotary(positions_BT)
    latents = []
    for layer in _layers(decoder):
        normed_BTD = layer.input_layernorm(x_BTD)
        latents.append(torch.cat(layer.self_attn.latents(normed_BTD, cos_BTR, sin_BTR), dim=-1))
        x_BTD = x_BTD + layer.self_attn(normed_BTD, cos_BTR, sin_BTR, documents).to(x_BTD.dtype)
        x_BTD = x_BTD + feed_forward(layer.mlp, layer.post_attention_layernorm(x_BTD)).to(x_BTD.dtype)
    last = torch.tensor(lengths, device=x_BTD.device) - 1
    return torch.stack(latents), x_BTD[torch.arange(rows, device=x_BTD.device), last]


def logits(model: KimiK25, x_BD: Tensor) -> Tensor:
    """[B, V] of the last layer's hidden states."""
    rows = len(x_BD)
    if rows < PRODUCT_ROWS:
        x_BD = F.pad(x_BD, (0, 0, 0, PRODUCT_ROWS - rows))
    return model.language_model.lm_head(model.language_model.model.norm(x_BD))[:rows].float()


class Steps:
    """Decode steps of a model: make them anew when its weights are other tensors (new values in place are seen)."""

    def __init__(self, model: KimiK25) -> None:
        weight = model.language_model.lm_head.weight
        self.model = model
        self._by_kernels = weight.device.type == "cpu" and weight.dtype == torch.float32
        if self._by_kernels:
            self._layers = [_arrays(layer) for layer in _layers(model.language_model.model)]
            self._embeddings = array(model.language_model.model.embed_tokens.weight)
            self._head = (array(model.language_model.model.norm.weight), array(weight))

    def __call__(
        self, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int], threads: RowThreads
    ) -> Tensor:
        """One step of rows 0 .. B-1: append each row's newest token to the cache and return its logits [B, V].

        Args:
            tokens: the newest token of each row.
            lengths: how many tokens each row has in the cache already.
        """
        if not self._by_kernels:
            with evaluating(self.model):
                return decode(self.model, cache, tokens, lengths)
        idle = -len(tokens) % kernels.ROWS
        ids_B, lengths_B = np.array([*tokens, *[0] * idle]), np.array([*lengths, *[0] * idle])
        angles = self.model.language_model.model.rotary(torch.from_numpy(lengths_B))
        cos_BR, sin_BR = (array(x) for x in angles)
        x_BD, latents = self._embeddings[ids_B], array(cache.latents)
        logits_BV = np.empty((len(ids_B), len(self._head[1])), dtype=x_BD.dtype)
        eps = self.model.config.text_config.rms_norm_eps

        def step(start: int, end: int) -> None:
            rows = slice(start, end)
            for layer, (attention, feed_forward, weights) in zip(latents, self._layers, strict=True):
                kernels.attention(x_BD[rows], layer[rows], lengths_B[rows], cos_BR[rows], sin_BR[rows], *attention)
                feed_forward(x_BD[rows], *weights)
            kernels.logits(x_BD[rows], *self._head, eps, logits_BV[rows])

        threads.over(len(ids_B), step, kernels.ROWS)
        return torch.from_numpy(logits_BV[: len(tokens)])


def _arrays(layer: DecoderLayer) -> tuple[tuple[Any, ...], Callable[..., None], tuple[Any, ...]]:
    """What the kernels want of a layer: attention's weights, the feed-forward's kernel and its weights."""
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    of_attention = (
        layer.input_layernorm.weight,
        attention.q_a_proj.weight,
        attention.q_a_layernorm.weight,
        attention.q_b_proj.weight,
        attention.kv_a_proj_with_mqa.weight,
        attention.kv_a_layernorm.weight,
        attention.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1)),
        attention.o_proj.weight,
    )
    ffn = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else mlp
    assert isinstance(ffn, SwiGLU)
    of_ffn = (ffn.gate_proj.weight, ffn.up_proj.weight, ffn.down_proj.weight)
    norm = layer.post_attention_layernorm.weight
    eps = config.rms_norm_eps
    attends = (*map(_contiguous, of_attention), eps, config.softmax_scale)
    if not isinstance(mlp, MixtureOfExperts):
        return attends, kernels.dense, (*map(_contiguous, (norm, *of_ffn)), eps)
    of_experts = (
        norm,
        mlp.gate.weight,
        mlp.gate.e_score_correction_bias,
        mlp.experts.gate_up_proj,
        mlp.experts.down_proj,
        *of_ffn,
    )
    sizes = (config.num_experts_per_tok, config.routed_scaling_factor, eps)
    return attends, kernels.experts, (*map(_contiguous, of_experts), *sizes)


def _contiguous(weight: Tensor) -> Array:
    return array(weight.contiguous())


def decode(model: KimiK25, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """``Steps.__call__`` by torch's operators, on any device."""
    decoder = model.language_model.model
    device = cache.latents.device
    ids_B = torch.tensor(tokens, device=device)
    lengths_B = torch.tensor(lengths, device=device)
    rows_B = torch.arange(len(ids_B), device=device)
    span = round_up(max(lengths) + 1)
    bias_B1T = torch.zeros(len(ids_B), 1, span, device=device, dtype=cache.latents.dtype)
    bias_B1T.masked_fill_((torch.arange(span, device=device) > lengths_B[:, None]).unsqueeze(1), -torch.inf)
    cos_BTR, sin_BTR = decoder.rotary(lengths_B[:, None])
    x_BTD = decoder.embed_tokens(ids_B)[:, None]
    for layer, latents in zip(_layers(decoder), cache.latents, strict=True):
        attention = layer.self_attn
        normed_BTD = layer.input_layernorm(x_BTD)
        latents[rows_B, :, lengths_B] = torch.cat(attention.latents(normed_BTD, cos_BTR, sin_BTR), dim=-1)[:, 0]
        q_BHK = attention.queries(normed_BTD, cos_BTR, sin_BTR)[:, 0]
        x_BTD = x_BTD + _absorbed(attention, q_BHK, latents[: len(ids_B), :, :span], bias_B1T)[:, None]
        x_BTD = x_BTD + _feed_forward(layer.mlp, layer.post_attention_layernorm(x_BTD))
    return logits(model, x_BTD[:, 0])


def _layers(decoder: Decoder) -> Iterator[DecoderLayer]:
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        yield layer


def _absorbed(attention: MultiheadLatentAttention, q_BHK: Tensor, latents_BWT: Tensor, bias_B1T: Tensor) -> Tensor:
    """Attention output [B, D] of one query per row over that row's latents."""
    config = attention.config
    kv_HxC = attention.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
    key_HNC, value_HVC = kv_HxC.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
    nope_BHN, rope_BHR = q_BHK.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
    nope_BHC = torch.bmm(nope_BHN.transpose(0, 1), key_HNC).transpose(0, 1)
    query_BHW = torch.cat((nope_BHC, rope_BHR), dim=-1)
    scores_BHT = torch.baddbmm(bias_B1T, query_BHW, latents_BWT, alpha=config.softmax_scale)
    out_BHC = torch.bmm(scores_BHT.softmax(-1), latents_BWT[:, : config.kv_lora_rank].mT)
    out_BHV = torch.bmm(out_BHC.transpose(0, 1), value_HVC.transpose(1, 2)).transpose(0, 1)
    return attention.o_proj(out_BHV.flatten(1))


def _feed_forward(mlp: nn.Module, x_BTD: Tensor) -> Tensor:
    if not isinstance(mlp, MixtureOfExperts):
        return mlp(x_BTD)
    chosen_NK, weights_NK = mlp.gate(x_BTD)
    routed_ND = _routed(mlp.experts, x_BTD.flatten(0, 1), weights_NK, chosen_NK)
    return routed_ND.view_as(x_BTD) + mlp.shared_experts(x_BTD)


def _routed(experts: Experts, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    """As ``Experts.forward``, with at least ``PRODUCT_ROWS`` rows in each expert's product."""
    k = chosen_NK.shape[1]
    order_S = chosen_NK.flatten().argsort(stable=True)
    counts = chosen_NK.flatten().bincount(minlength=len(experts.gate_up_proj)).tolist()
    token_S = order_S.new_zeros(len(order_S) + PRODUCT_ROWS)
    torch.div(order_S, k, rounding_mode="floor", out=token_S[: len(order_S)])
    x_SD = x_ND.index_select(0, token_S)
    y_SD = torch.empty_like(x_SD)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            # Borrowed rows of the next experts are computed for nothing, and overwritten by theirs.
            end = start + max(count, PRODUCT_ROWS)
            gate_SF, up_SF = torch.mm(x_SD[start:end], experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            torch.mm(F.silu(gate_SF) * up_SF, experts.down_proj[expert].T, out=y_SD[start:end])
            start += count
    place_NK = (
        torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device)).view(-1, k)
    )
    return F.embedding_bag(place_NK, y_SD, mode="sum", per_sample_weights=weights_NK.to(y_SD.dtype))
