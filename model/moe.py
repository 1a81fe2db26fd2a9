"""Mixture of experts: bias-corrected sigmoid routing, grouped SwiGLU experts, a shared expert (source: K2 Table 2).

Shapes: N tokens, D hidden, E routed experts, F expert width, K experts per token,
S = token-expert pairs sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TextConfig
from model.grouped_product import grouped_outer, grouped_product
from model.kernels import experts as kernels
from model.kernels.numbers import array, compiled_for
from model.precision import GRANULE, gated_ffn, product_dtype, swiglu, swiglu_backward
from model.quantization import in_use
from model.sequence_parallel import sequence_group


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): the dense FFN and the shared expert."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return gated_ffn(x, self.gate_proj, self.up_proj, self.down_proj)


class Router(nn.Module):
    """Sigmoid scores; a bias, moved by load and not by gradient, takes part in the choice only.

    ``load_E`` counts the tokens each expert got since ``update_bias`` was last called; ``aux_loss`` is the last
    forward's sequence-wise balance loss, already times ``aux_loss_alpha``.
    """

    load_E: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.n_routed_experts), requires_grad=False)
        self.register_buffer("load_E", torch.zeros(config.n_routed_experts), persistent=False)
        self.aux_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids and combine weights, both [B*T, K]."""
        config = self.config
        logits_BTE = F.linear(x_BTD.float(), self.weight.float())
        if not self.training and not torch.is_grad_enabled() and compiled_for(logits_BTE, self.e_score_correction_bias):
            logits_NE = logits_BTE.flatten(0, 1)
            weights_NK = logits_NE.new_empty(len(logits_NE), config.num_experts_per_tok)
            chosen_NK = torch.empty_like(weights_NK, dtype=torch.int64)
            arrays = array(chosen_NK), array(weights_NK)
            kernels.route(array(logits_NE), array(self.e_score_correction_bias), config.routed_scaling_factor, *arrays)
            return chosen_NK, weights_NK
        scores_BTE = logits_BTE.sigmoid()
        chosen_BTK = (
            (scores_BTE.detach() + self.e_score_correction_bias)
            .topk(config.num_experts_per_tok, dim=-1, sorted=False)
            .indices
        )
        weights_BTK = scores_BTE.gather(-1, chosen_BTK)
        weights_BTK = weights_BTK / (weights_BTK.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
        if self.training:
            self._balance(scores_BTE, chosen_BTK)
        return chosen_BTK.flatten(0, 1), weights_BTK.flatten(0, 1)

    def _balance(self, scores_BTE: Tensor, chosen_BTK: Tensor) -> None:
        """Balance within each row: alpha * sum_e (share of row's choices * E) * (mean normalised score).

        Where ranks share the rows, the choices are those of the whole rows and the loss is this rank's share of it: it
        is linear in the scores, so the shares add up.
        """
        config, (rows, tokens, experts), sharing = self.config, scores_BTE.shape, sequence_group()
        chosen = chosen_BTK.flatten(1)
        counts_BE = scores_BTE.new_zeros(rows, experts).scatter_add_(
            1, chosen, torch.ones_like(chosen, dtype=scores_BTE.dtype)
        )
        self.load_E.add_(counts_BE.detach().sum(0))
        share_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True)).mean(1)
        if sharing is not None:
            share_BE, counts_BE, tokens = share_BE / sharing.size, sharing.sum_(counts_BE), tokens * sharing.size
        frequency_BE = counts_BE * (experts / (config.num_experts_per_tok * tokens))
        self.aux_loss = config.aux_loss_alpha * (frequency_BE * share_BE).sum(-1).mean()

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Raise the bias of under-loaded experts by ``rate``, lower the others'; forget the counts (DeepSeek-V3)."""
        self.e_score_correction_bias.add_(torch.sign(self.load_E.mean() - self.load_E), alpha=rate)
        self.load_E.zero_()


class GroupedExperts(torch.autograd.Function):
    """All routed experts at once: sort pairs by expert, one GEMM per expert and matrix, gathers instead of scatters;
    a token's experts are gathered, weighted and summed in one pass over memory.

    Written by hand because autograd's backward of the token gather is a scatter-add, the slowest part of a small MoE.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weights_NK: Tensor,
        chosen_NK: Tensor,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        dtype = dtype or x_ND.dtype
        ctx.dtypes = (x_ND.dtype, weights_NK.dtype, gate_up_EGD.dtype)
        x_ND, gate_up_EGD, down_EDF = (t.to(dtype) for t in (x_ND, gate_up_EGD, down_EDF))
        granule = 1 if dtype == ctx.dtypes[2] else GRANULE
        place_NK, token_S, weight_S, end_E = _sorted(chosen_NK, weights_NK, len(gate_up_EGD), granule)
        x_SD = x_ND.index_select(0, token_S)
        h_SG = grouped_product(x_SD, gate_up_EGD.mT, end_E)
        act_SF = swiglu(h_SG)
        y_SD = grouped_product(act_SF, down_EDF.mT, end_E)
        kept = (x_SD, weight_S, token_S, place_NK, end_E, h_SG, act_SF, y_SD, gate_up_EGD, down_EDF)
        ctx.save_for_backward(*kept)
        return _combined(y_SD, place_NK, weight_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = grads
        x_SD, weight_S, token_S, place_NK, end_E, h_SG, act_SF, y_SD, gate_up_EGD, down_EDF = ctx.saved_tensors
        of_x, of_weights, of_experts = ctx.dtypes
        grad_SD, grad_weight_S = _combined_backward(grad_ND, y_SD, token_S, weight_S)
        grad_weights_NK = grad_weight_S[place_NK].to(of_weights)
        grad_down_EDF = grouped_outer(grad_SD, act_SF, end_E)
        grad_h_SG = swiglu_backward(grouped_product(grad_SD, down_EDF, end_E), h_SG)
        grad_gate_up_EGD = grouped_outer(grad_h_SG, x_SD, end_E)
        grad_x_SD = grouped_product(grad_h_SG, gate_up_EGD, end_E)
        grad_x_ND = _combined(grad_x_SD, place_NK, torch.ones_like(weight_S)).to(of_x)
        return grad_x_ND, grad_weights_NK, None, grad_gate_up_EGD.to(of_experts), grad_down_EDF.to(of_experts), None


def _sorted(chosen_NK: Tensor, weights_NK: Tensor, experts: int, granule: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs sorted by expert, each expert's rows filled up to a whole number of granules.

    Returns each pair's row [N, K], each row's token [S] and combine weight [S], and where each expert's rows end [E].
    Rows that fill up a granule read token 0 with weight 0: they change neither output nor gradients.
    """
    k = chosen_NK.shape[1]
    if compiled_for(chosen_NK):
        place_NK, end_E = torch.empty_like(chosen_NK), chosen_NK.new_zeros(experts)
        token_S = chosen_NK.new_zeros(chosen_NK.numel() + experts * (granule - 1))
        weight_S = weights_NK.new_zeros(len(token_S))
        arrays = map(array, (chosen_NK, weights_NK, end_E, place_NK, token_S, weight_S))
        rows = kernels.sort_by_expert(*arrays, granule)
        return place_NK, token_S[:rows], weight_S[:rows], end_E
    order_S = chosen_NK.flatten().argsort(stable=True)
    count_E = chosen_NK.flatten().bincount(minlength=experts)
    room_E = (count_E + granule - 1) // granule * granule
    end_E = room_E.cumsum(0)
    rows = int(end_E[-1])
    shift_E = (end_E - room_E) - (count_E.cumsum(0) - count_E)
    rank_S = torch.arange(len(order_S), device=order_S.device)
    row_S = rank_S + shift_E.repeat_interleave(count_E, output_size=len(order_S))
    place_S = torch.empty_like(order_S).scatter_(0, order_S, row_S)
    token_S = order_S.new_zeros(rows).scatter_(0, row_S, order_S // k)
    weight_S = weights_NK.new_zeros(rows).scatter_(0, place_S, weights_NK.flatten())
    return place_S.view(-1, k), token_S, weight_S, end_E


def _combined(y_SD: Tensor, place_NK: Tensor, weight_S: Tensor) -> Tensor:
    """Each token's rows, weighted and summed, [N, D]."""
    if compiled_for(y_SD):
        out_ND = y_SD.new_empty(len(place_NK), y_SD.shape[1])
        room_D = y_SD.new_empty(y_SD.shape[1], dtype=torch.promote_types(y_SD.dtype, torch.float32))
        kernels.combine(*map(array, (y_SD, place_NK, weight_S, out_ND, room_D)))
        return out_ND
    weights_NK = weight_S[place_NK].to(y_SD.dtype)
    return F.embedding_bag(place_NK, y_SD, mode="sum", per_sample_weights=weights_NK)


def _combined_backward(grad_ND: Tensor, y_SD: Tensor, token_S: Tensor, weight_S: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y [S, D] and of the rows' weights [S]."""
    if compiled_for(y_SD):
        grad_y_SD, grad_weight_S = torch.empty_like(y_SD), torch.empty_like(weight_S)
        arrays = (grad_ND.contiguous(), y_SD, token_S, weight_S, grad_y_SD, grad_weight_S)
        kernels.combine_backward(*map(array, arrays))
        return grad_y_SD, grad_weight_S
    grad_SD = grad_ND.index_select(0, token_S)
    grad_weight_S = (grad_SD * y_SD).sum(-1, dtype=weight_S.dtype)
    return grad_SD.mul_(weight_S.unsqueeze(-1).to(grad_SD.dtype)), grad_weight_S


class Experts(nn.Module):
    """Weights of the routed experts, stacked; ``model.hf`` splits them into the released per-expert names.

    ``group`` carries tokens to the ranks that hold their experts (``model.expert_parallel``); None: they are all here.
    """

    group: Callable[..., Tensor] | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        if self.group is not None:
            return self.group(self._held, x_ND, weights_NK, chosen_NK)
        return self._held(x_ND, weights_NK, chosen_NK)

    def _held(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """``chosen_NK`` counts the experts held here."""
        gate_up_EGD, down_EDF = in_use(self.gate_up_proj), in_use(self.down_proj)
        return GroupedExperts.apply(x_ND, weights_NK, chosen_NK, gate_up_EGD, down_EDF, product_dtype())


class MixtureOfExperts(nn.Module):
    """Routed experts, weighted, plus the shared expert unscaled; [B, T, D] to [B, T, D]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = SwiGLU(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BTD: Tensor) -> Tensor:
        chosen_NK, weights_NK = self.gate(x_BTD)
        routed_ND = self.experts(x_BTD.flatten(0, 1), weights_NK, chosen_NK)
        return routed_ND.view_as(x_BTD) + self.shared_experts(x_BTD)
