"""New tokens over a cache on a CPU, with two kernel calls per layer (source: ours).

It is a second implementation of ``Decoder.prefill``, ``Decoder.decode`` and the head, because it is much faster: a step
of a few rows is short, and with torch's operators most of it would be spent in Python. A prompt, the rest of a prompt
and a decode step are one computation here, so a token's cache entry and logits have the same bits whichever of them
read it. They depend neither on the tokens read with it nor on the number of threads.
``operations.choice.reads_by_kernels`` says when it is used.

Shapes: N new tokens, B rows, D hidden, r = rope dims / 2, W = kv latent + rope dims, T tokens that the cache has room
for, S its rows, L layers, V vocabulary.
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

PIECE = 256  # tokens that go through the layers together: what they need fits into a core's cache (ours)


class CachedForward:
    """A forward of new tokens over a model's weights where they are in memory: values written in place are seen, new
    tensors are not."""

    def __init__(self, model: CausalLM) -> None:
        self._decoder = model.model
        self._layers = [_arrays(layer) for layer in model.model.each_layer()]
        self._head = (array(model.model.norm.weight), array(model.lm_head.weight), model.model.norm.eps)

    def read(
        self, x_ND: Tensor, latents_LSWT: Tensor, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """Add tokens to the cache, in this thread, and return the logits [B, V] of each row's last one.

        Args:
            x_ND: embeddings of the tokens, row after row.
            latents_LSWT: the cache, with room for the tokens. Nobody needs its last row: others write there too.
            rows: the rows of the cache that get tokens.
            starts: how many tokens of each of these rows are in the cache already.
            counts: how many each of them gets, 1 or more.
        """
        last_B = np.cumsum(counts) - 1
        position_N = np.arange(len(x_ND)) - np.repeat(last_B + 1 - counts - starts, counts)
        # torch's cosine of what is left over after whole vectors has other bits: angles come in multiples of 32.
        cos_Nr, sin_Nr = map(array, self._decoder.rotary(torch.from_numpy(_filled(position_N, 32))))
        x, idle = _filled(array(x_ND)), latents_LSWT.shape[1] - 1
        places = _filled(np.repeat(rows, counts), value=idle), _filled(position_N)
        for start in range(0, len(x), PIECE):
            piece = slice(start, min(start + PIECE, len(x)))
            tokens = x[piece], *(each[piece] for each in (*places, cos_Nr, sin_Nr))
            for layer_SWT, (attention, feed_forward, weights) in zip(array(latents_LSWT), self._layers, strict=True):
                kernels.attention(*tokens, layer_SWT, *attention)
                feed_forward(x[piece], *weights)
        x_BD = _filled(x[last_B])
        logits_BV = np.empty((len(x_BD), len(self._head[1])), dtype=x.dtype)
        kernels.logits(x_BD, *self._head, logits_BV)
        return torch.from_numpy(logits_BV[: len(rows)])


def _filled(each_N: Array, granule: int = kernels.ROWS, value: int = 0) -> Array:
    """A copy with some more values at its end, so that there is a whole number of granules."""
    missing = -len(each_N) % granule
    return np.concatenate((each_N, np.full((missing, *each_N.shape[1:]), value, each_N.dtype)))


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
