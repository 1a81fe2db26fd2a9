"""A forward from which nothing is learned, on a CPU: two calls a layer (source: ours).

Between torch's operators a thread needs Python's lock, hundreds of times in a forward of the tiny model; threads that
read rows of a batch at once wait for each other there. ``model.kernels.layers`` computes what the modules compute with
two such moments a layer.

Shapes: B rows, T tokens in a row, D hidden, N = B * T, r = rope dims / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.documents import Documents
from model.kernels import layers as kernels
from model.kernels.numbers import Array, array, compiled_for
from model.moe import MixtureOfExperts, SwiGLU
from model.packed_attention import CHUNK, attends_by_products, scores
from model.precision import GRANULE
from model.quantization import in_use
from model.sequence_parallel import sequence_group

if TYPE_CHECKING:
    from model.decoder import Decoder, DecoderLayer


def reads_by_kernels(decoder: Decoder, x_BTD: Tensor, documents: Documents) -> bool:
    """Whether ``read`` can take the place of the layers: nothing is learned, no rank or hook looks at what is in
    between, and the weights are as they are after construction, without biases, in one dtype and in one piece each."""
    if torch.is_grad_enabled() or not attends_by_products(documents) or not compiled_for(x_BTD, x_BTD):
        return False
    if sequence_group() is not None:
        return False
    for module in decoder.modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, MixtureOfExperts) and module.experts.group is not None:
            return False
        for name, weight in module.named_parameters(recurse=False):
            if name == "bias" or weight.dtype != x_BTD.dtype or not weight.is_contiguous():
                return False
    return True


def read(decoder: Decoder, x_BTD: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, documents: Documents) -> Tensor:
    """Normalised hidden states [B, T, D], in the precision of products."""
    layers = cast("list[DecoderLayer]", list(decoder.layers))
    config = layers[0].self_attn.config  # a longer context changes that of the attentions
    eps, scale = config.rms_norm_eps, config.softmax_scale
    x_ND = x_BTD.flatten(0, 1).clone()
    normed_ND = F.pad(layers[0].input_layernorm(x_ND), (0, 0, 0, -len(x_ND) % GRANULE))
    stream = array(x_ND), array(normed_ND)
    turned = array(cos_BTr.flatten(0, 1)), array(sin_BTr.flatten(0, 1)), array(documents.first_BT)
    attention = kernels.attention(config.qk_nope_head_dim, cos_BTr.shape[-1], config.v_head_dim)
    for layer, norm in zip(layers, [*(layer.input_layernorm for layer in layers[1:]), decoder.norm], strict=True):
        mlp = layer.mlp
        attention(*stream, *_of_attention(layer), eps, *turned, CHUNK, scores(documents.tokens), scale)
        if isinstance(mlp, MixtureOfExperts):
            sizes = config.num_experts_per_tok, config.routed_scaling_factor, GRANULE
            kernels.experts(*stream, *_of_experts(mlp), array(norm.weight), eps, *sizes)
        else:
            kernels.dense(*stream, *_of_swiglu(mlp), array(norm.weight), eps)
    return normed_ND[: len(x_ND)].view(x_BTD.shape)


def _of_attention(layer: DecoderLayer) -> Iterator[Array]:
    own = layer.self_attn
    queries = own.q_a_proj, own.q_a_layernorm, own.q_b_proj
    keys_and_values = own.kv_a_proj_with_mqa, own.kv_a_layernorm, own.kv_b_proj
    return _weights(*queries, *keys_and_values, own.o_proj, layer.post_attention_layernorm)


def _of_experts(mlp: MixtureOfExperts) -> Iterator[Array]:
    routed = mlp.experts
    yield from map(array, (mlp.gate.weight, mlp.gate.e_score_correction_bias))
    yield from map(array, (in_use(routed.gate_up_proj), in_use(routed.down_proj)))
    yield from _of_swiglu(mlp.shared_experts)


def _of_swiglu(mlp: nn.Module) -> Iterator[Array]:
    assert isinstance(mlp, SwiGLU)
    return _weights(mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _weights(*modules: nn.Linear | nn.RMSNorm) -> Iterator[Array]:
    return (array(module.weight) for module in modules)
