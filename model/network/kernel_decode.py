"""A decode step on a CPU, with two kernel calls per layer (source: ours).

It is a second implementation of ``Decoder.decode`` and the head, because it is much faster: a step of a few rows is
short, and with torch's operators most of it would be spent in Python. A row's bits depend neither on the other rows nor
on the number of threads. ``operations.choice.decodes_by_kernels`` says when it is used.

Shapes: B rows, D hidden, r = rope dims / 2, W = kv latent + rope dims, T tokens that the cache has room for, L layers,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network.decoder import CausalLM
from model.network.kernels import decoding as kernels
from model.network.kernels.numbers import Array, array
from model.network.layer import DecoderLayer
from model.network.moe import MixtureOfExperts, SwiGLU
from model.network.row_threads import RowThreads


class KernelDecode:
    """Decode steps over a model's weights where they are in memory: values written in place are seen, new tensors are
    not."""

    def __init__(self, model: CausalLM) -> None:
        self._decoder = model.model
        self._layers = [_arrays(layer) for layer in model.model.each_layer()]
        self._embeddings = array(model.model.embed_tokens.weight)
        self._head = (array(model.model.norm.weight), array(model.lm_head.weight), model.model.norm.eps)

    def __call__(
        self, latents_LBWT: Tensor, tokens: Sequence[int], lengths: Sequence[int], threads: RowThreads
    ) -> Tensor:
        """Run one more token per row: add it to the cache and return its logits [B, V].

        Args:
            latents_LBWT: the cache, with a multiple of four rows and room for one more token in each.
            tokens: the new token of each row.
            lengths: how many tokens of each row are in the cache already.
            threads: divide the rows.
        """
        idle = -len(tokens) % kernels.ROWS
        ids_B, lengths_B = np.array([*tokens, *[0] * idle]), np.array([*lengths, *[0] * idle])
        cos_Br, sin_Br = (array(each) for each in self._decoder.rotary(torch.from_numpy(lengths_B)))
        x_BD, latents = self._embeddings[ids_B], array(latents_LBWT)
        logits_BV = np.empty((len(ids_B), len(self._head[1])), dtype=x_BD.dtype)

        def step(start: int, end: int) -> None:
            rows = slice(start, end)
            for layer, (attention, feed_forward, weights) in zip(latents, self._layers, strict=True):
                kernels.attention(x_BD[rows], layer[rows], lengths_B[rows], cos_Br[rows], sin_Br[rows], *attention)
                feed_forward(x_BD[rows], *weights)
            kernels.logits(x_BD[rows], *self._head, logits_BV[rows])

        threads.over(len(ids_B), step, kernels.ROWS)
        return torch.from_numpy(logits_BV[: len(tokens)])


def _arrays(layer: DecoderLayer) -> tuple[tuple[Any, ...], Callable[..., None], tuple[Any, ...]]:
    """What the kernels need of a layer: attention's weights, the feed-forward's kernel and its weights."""
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    attention_weights = (
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
    ffn_weights = (ffn.gate_proj.weight, ffn.up_proj.weight, ffn.down_proj.weight)
    norm = layer.post_attention_layernorm.weight
    eps = config.rms_norm_eps
    attends = (*map(_contiguous, attention_weights), eps, config.softmax_scale)
    if not isinstance(mlp, MixtureOfExperts):
        return attends, kernels.dense, (*map(_contiguous, (norm, *ffn_weights)), eps)
    expert_weights = (
        norm,
        mlp.gate.weight,
        mlp.gate.e_score_correction_bias,
        mlp.experts.gate_up_proj,
        mlp.experts.down_proj,
        *ffn_weights,
    )
    sizes = (config.num_experts_per_tok, config.routed_scaling_factor, eps)
    return attends, kernels.experts, (*map(_contiguous, expert_weights), *sizes)


def _contiguous(weight: Tensor) -> Array:
    return array(weight.contiguous())
