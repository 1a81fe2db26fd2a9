"""Initial weights (ours): random, with the circuit that copies from context already in place.

What a language model first learns, over its first billions of tokens, is to find an earlier occurrence of the current
token and to repeat what followed it (an induction circuit: Olsson et al., arXiv 2209.11895). The recipe begins from a
near-final language model; a run of minutes begins from nothing, and would spend most of them on this one circuit. So
the attention starts with it, as structure that training is free to keep or to break up (as in mimetic initialisation:
Trockman and Kolter, arXiv 2305.09828):

- the heads of layer 0 look one token back and write what they see there into a rotated copy of the embedding space;
- the heads of later layers look for that copy of the current token, and add the embedding of what they find;
- the head begins as the embeddings' own directions, so that an added embedding is a vote for its token.

Shapes: V vocabulary, D hidden, E experts that are drawn together, e experts held here, G twice the width of one, C kv
latent, H heads, Q query latent, I nope dims, R rope dims, r = R / 2, K = I + R, U nope and value dims of a head,
X = H * value dims.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network.attention import MultiheadLatentAttention
from model.network.config import ModelConfig
from model.network.construction import allocate, build_on_meta
from model.network.expert_share import ALL_EXPERTS, ExpertShare
from model.network.moe import Experts, Router
from model.network.multimodal import KimiK25
from model.network.vision import PositionGrid

EMBEDDING_SCALE = 8.0  # embeddings, in units of initializer_range
HEAD_SCALE = 0.2  # head, in units of the embeddings
LOOK_BACK = 0.35  # scale of the common direction in the rotary parts of queries and keys
ROTARY_NOISE = 0.3  # scale of the random rest of these parts
MATCH = 2.5  # scale of the content parts of queries and keys, in units of random ones
VALUE = 0.5  # a value, in units of the latent that it is read from
BLOCK = 16  # numbers that torch draws together: tensors of whole blocks, drawn in turn, get the numbers of one draw
WRITE, VOTE = 1.5, 1.0  # scale at which layer 0, and the later layers, add a value to the residual stream


def new_model(config: ModelConfig, seed: int = 0, share: ExpertShare = ALL_EXPERTS) -> KimiK25:
    """A model of this shape in float32 on the CPU, in training mode, with initial weights.

    Its weights depend on ``config`` and ``seed`` alone; torch's global random state is neither read nor changed. A
    model that has a ``share`` of the experts has the same ones as the whole model, and takes memory for one expert of
    the others at a time (for all, where an expert is not whole blocks of BLOCK).

    Raises:
        MoonflowError: the experts do not divide evenly.
    """
    model = build_on_meta(config, share)
    allocate(model)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: KimiK25, seed: int) -> None:
    """Draw all weights of ``model`` from ``seed``, in place, whatever they were before."""
    generator = torch.Generator().manual_seed(seed)
    std = model.config.text_config.initializer_range
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0.0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
            if name.startswith("language_model") and name.endswith("down_proj"):
                module.weight.zero_()  # feed-forward branches begin at zero
        elif isinstance(module, PositionGrid):
            module.weight.normal_(0.0, std, generator=generator)
        elif isinstance(module, Router):
            module.weight.normal_(0.0, std, generator=generator)
            module.e_score_correction_bias.zero_()
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()  # ones, and zeros for a bias: nothing is drawn
        elif isinstance(module, Experts):
            _draw_experts(module, std, generator)
            module.down_proj.zero_()

    embeddings_VD = model.language_model.model.embed_tokens.weight.normal_(
        0.0, EMBEDDING_SCALE * std, generator=generator
    )
    model.language_model.lm_head.weight.copy_(embeddings_VD * HEAD_SCALE)
    # One direction that all tokens share stands in for biases: attention patterns that depend on position alone use it.
    common_D = torch.empty(embeddings_VD.shape[1]).normal_(0.0, EMBEDDING_SCALE * std, generator=generator)
    embeddings_VD += common_D
    place_induction_circuit(model, common_D / common_D.norm(), generator)


def _draw_experts(experts: Experts, std: float, generator: torch.Generator) -> None:
    """Draw ``gate_up_proj`` of all experts, and keep that of those held here.

    They are drawn one by one, which gives the numbers of one draw where an expert is whole blocks.
    """
    own_eGD = experts.gate_up_proj
    together = experts.count if own_eGD[0].numel() % BLOCK else 1
    drawn_EGD = own_eGD.new_empty(together, *own_eGD.shape[1:])
    for first in range(0, experts.count, together):
        for number, expert_GD in enumerate(drawn_EGD.normal_(0.0, std, generator=generator), first):
            if number in experts.held:
                own_eGD[number - experts.held.start] = expert_GD


def place_induction_circuit(model: KimiK25, common_D: Tensor, generator: torch.Generator) -> None:
    """Write previous-token heads into layer 0 and matching heads into the later layers, in place.

    Args:
        common_D: the direction that all tokens share, of unit length.
    """
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
        keys_values_HUC = attention.kv_b_proj.weight.view(heads, nope + config.v_head_dim, rank)
        values_XC = _orthogonal(heads * config.v_head_dim, rank, generator)
        keys_values_HUC[:, nope:] = VALUE * values_XC.view(heads, config.v_head_dim, rank)
        read_back_DX = (values_XC @ latent_CD).T
        if number == 0:
            attention.o_proj.weight.copy_(WRITE * turn_DD @ read_back_DX)
            _look_back(attention, common_D, model.language_model.model.rotary.frequencies_r)
            continue
        attention.o_proj.weight.copy_(VOTE * read_back_DX)
        shared = min(rank, config.q_lora_rank)
        attention.q_a_proj.weight[:shared] = unit * (latent_CD @ turn_DD)[:shared]
        keys_values_HUC[:, :nope] *= MATCH
        queries_HKQ = attention.q_b_proj.weight.view(heads, config.qk_head_dim, config.q_lora_rank)
        queries_HKQ[:, :nope, :shared] = keys_values_HUC[:, :nope, :shared]


def _look_back(attention: MultiheadLatentAttention, common_D: Tensor, frequencies_r: Tensor) -> None:
    """Make rotary queries that are keys turned one position back: their product is largest with the token before."""
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
