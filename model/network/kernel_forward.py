"""A forward without gradients on a CPU, with two kernel calls per layer (source: ours).

It is a second implementation of the layers, because it is much faster: between torch's operators a thread needs
Python's lock, hundreds of times in a forward of the tiny model, and threads that run rows of a batch at once wait for
each other there. ``model.network.kernels.layers`` needs the lock twice per layer.
``operations.choice.forwards_by_kernels`` says when it is used.

Shapes: B rows, T tokens in a row, D hidden, N = B * T, r = rope dims / 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from model.network.documents import Documents
from model.network.forward_context import ForwardContext
from model.network.kernels import layers as kernels
from model.network.kernels.numbers import Array, array
from model.network.layer import DecoderLayer
from model.network.moe import MixtureOfExperts, SwiGLU
from model.network.packed_attention import CHUNK, scores
from model.network.precision import GRANULE, RMSNorm
from model.network.quantization import in_precision


def forward_by_kernels(
    layers: Sequence[DecoderLayer],
    last_norm: RMSNorm,
    x_BTD: Tensor,
    cos_BTr: Tensor,
    sin_BTr: Tensor,
    documents: Documents,
    context: ForwardContext,
) -> Tensor:
    """Normalised hidden states [B, T, D], in the precision of products."""
    config = layers[0].self_attn.config  # of an attention: ``extend_context`` replaces it there
    eps, scale = config.rms_norm_eps, config.softmax_scale
    x_ND = x_BTD.flatten(0, 1).clone()
    normed_ND = F.pad(layers[0].input_layernorm(x_ND, context.products), (0, 0, 0, -len(x_ND) % GRANULE))
    stream = array(x_ND), array(normed_ND)
    rotation = array(cos_BTr.flatten(0, 1)), array(sin_BTr.flatten(0, 1)), array(documents.first_BT)
    attention = kernels.attention(config.qk_nope_head_dim, cos_BTr.shape[-1], config.v_head_dim)
    for layer, norm in zip(layers, [*(layer.input_layernorm for layer in layers[1:]), last_norm], strict=True):
        mlp = layer.mlp
        attention(*stream, *_attention_weights(layer), eps, *rotation, CHUNK, scores(documents.tokens), scale)
        if isinstance(mlp, MixtureOfExperts):
            sizes = config.num_experts_per_tok, config.routed_scaling_factor, GRANULE
            kernels.experts(*stream, *_expert_weights(mlp, context.expert_precision), array(norm.weight), eps, *sizes)
        else:
            kernels.dense(*stream, *_swiglu_weights(mlp), array(norm.weight), eps)
    return normed_ND[: len(x_ND)].view(x_BTD.shape)


def _attention_weights(layer: DecoderLayer) -> Iterator[Array]:
    attention = layer.self_attn
    queries = attention.q_a_proj, attention.q_a_layernorm, attention.q_b_proj
    keys_and_values = attention.kv_a_proj_with_mqa, attention.kv_a_layernorm, attention.kv_b_proj
    return _weights(*queries, *keys_and_values, attention.o_proj, layer.post_attention_layernorm)


def _expert_weights(mlp: MixtureOfExperts, precision: str) -> Iterator[Array]:
    yield from map(array, (mlp.gate.weight, mlp.gate.e_score_correction_bias))
    yield from (array(in_precision(each, precision)) for each in (mlp.experts.gate_up_proj, mlp.experts.down_proj))
    yield from _swiglu_weights(mlp.shared_experts)


def _swiglu_weights(mlp: nn.Module) -> Iterator[Array]:
    assert isinstance(mlp, SwiGLU)
    return _weights(mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _weights(*modules: nn.Linear | nn.RMSNorm) -> Iterator[Array]:
    return (array(module.weight) for module in modules)
