"""Initial weights (ours): random, with the circuit that copies from context already in place.

What a language model first learns, over its first billions of tokens, is to find an earlier occurrence of the current
token and to repeat what followed it (an induction circuit: Olsson et al., arXiv 2209.11895). The recipe begins from a
near-final language model; a run of minutes begins from nothing, and would spend most of them on this one circuit. So
the attention starts with it, as structure that training is free to keep or to break up (as in mimetic initialisation:
Trockman and Kolter, arXiv 2305.09828):

- the heads of layer 0 look one token back and write what they see there into a rotated copy of the embedding space;
- the heads of later layers look for that copy of the current token, and add the embedding of what they find;
- the head begins as the embeddings' own directions, so that an added embedding is a vote for its token.

Shapes: D hidden, C kv latent, H heads, N nope dims, R rope dims, V value dims of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.attention import MultiheadLatentAttention
from model.moe import Experts, Router
from model.vision import PositionGrid

if TYPE_CHECKING:
    from model.multimodal import KimiK25

EMBEDDING_SCALE = 8.0  # embeddings, in units of initializer_range
HEAD_SCALE = 0.2  # head, in units of the embeddings
LOOK_BACK = 0.35  # what the rotary parts of queries and keys hold of the common direction
ROTARY_NOISE = 0.3  # of their random part
MATCH = 2.5  # content parts of queries and keys, in units of random ones
VALUE = 0.5  # a value, in units of the latent that it is read from
WRITE, VOTE = 1.5, 1.0  # what layer 0, and the later layers, add of a value


@torch.no_grad()
def initialise(model: KimiK25, seed: int) -> None:
    """Draw all weights of ``model`` from ``seed``, in place. A model on the meta device is left as it is."""
    if next(model.parameters()).is_meta:
        return
    generator = torch.Generator().manual_seed(seed)
    std = model.config.text_config.initializer_range
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0.0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
            if name.startswith("language_model") and name.endswith("down_proj"):
                module.weight.zero_()  # feed-forward branches begin at zero
        elif isinstance(module, Router | PositionGrid):
            module.weight.normal_(0.0, std, generator=generator)
        elif isinstance(module, Experts):
            module.gate_up_proj.normal_(0.0, std, generator=generator)
            module.down_proj.zero_()

    embeddings_VD = model.language_model.model.embed_tokens.weight.normal_(
        0.0, EMBEDDING_SCALE * std, generator=generator
    )
    model.language_model.lm_head.weight.copy_(embeddings_VD * HEAD_SCALE)
    # One direction that all tokens share stands in for biases: position-only attention patterns hold on to it.
    common_D = torch.empty(embeddings_VD.shape[1]).normal_(0.0, EMBEDDING_SCALE * std, generator=generator)
    embeddings_VD += common_D
    _wire(model, common_D / common_D.norm(), generator)


def _wire(model: KimiK25, common_D: Tensor, generator: torch.Generator) -> None:
    """Previous-token heads in layer 0, matching heads after it; ``common_D`` has unit length."""
    hidden = len(common_D)
    # The rotation drops the common direction, or every token would match every other.
    turn_DD = _orthogonal(hidden, hidden, generator)
    turn_DD -= torch.outer(turn_DD @ common_D, common_D)
    for number, layer in enumerate(model.language_model.model.layers):
        attention = layer.self_attn
        assert isinstance(attention, MultiheadLatentAttention)
        config = attention.config
        rank, heads, nope = config.kv_lora_rank, config.num_attention_heads, config.qk_nope_head_dim
        unit = config.initializer_range * hidden**0.5
        latent_CD = _orthogonal(rank, hidden, generator)
        attention.kv_a_proj_with_mqa.weight[:rank] = unit * latent_CD
        keys_values_HXC = attention.kv_b_proj.weight.view(heads, nope + config.v_head_dim, rank)
        values_XC = _orthogonal(heads * config.v_head_dim, rank, generator)
        keys_values_HXC[:, nope:] = VALUE * values_XC.view(heads, config.v_head_dim, rank)
        read_back_DX = (values_XC @ latent_CD).T
        if number == 0:
            attention.o_proj.weight.copy_(WRITE * turn_DD @ read_back_DX)
            _look_back(attention, common_D, model.language_model.model.rotary.frequencies_r)
            continue
        attention.o_proj.weight.copy_(VOTE * read_back_DX)
        shared = min(rank, config.q_lora_rank)
        attention.q_a_proj.weight[:shared] = unit * (latent_CD @ turn_DD)[:shared]
        keys_values_HXC[:, :nope] *= MATCH
        queries_HKQ = attention.q_b_proj.weight.view(heads, config.qk_head_dim, config.q_lora_rank)
        queries_HKQ[:, :nope, :shared] = keys_values_HXC[:, :nope, :shared]


def _look_back(attention: MultiheadLatentAttention, common_D: Tensor, frequencies_r: Tensor) -> None:
    """Rotary queries that are keys turned one position back: their product is largest for the token before."""
    config = attention.config
    key_R, query_R = torch.zeros(2, config.qk_rope_head_dim)
    key_R[0::2] = 1.0
    query_R[0::2], query_R[1::2] = torch.cos(-frequencies_r), torch.sin(-frequencies_r)
    keys_RD = attention.kv_a_proj_with_mqa.weight[config.kv_lora_rank :]
    keys_RD.mul_(ROTARY_NOISE).add_(LOOK_BACK * torch.outer(key_R, common_D))
    seen_Q = attention.q_a_proj.weight @ common_D
    queries_HKQ = attention.q_b_proj.weight.view(config.num_attention_heads, config.qk_head_dim, config.q_lora_rank)
    queries_HRQ = queries_HKQ[:, config.qk_nope_head_dim :]
    queries_HRQ.mul_(ROTARY_NOISE).add_(LOOK_BACK * torch.outer(query_R, seen_Q / seen_Q.norm()))


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random [rows, columns] whose rows, or columns if they are fewer, are orthonormal."""
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
