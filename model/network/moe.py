"""Mixture of experts: bias-corrected sigmoid routing, grouped SwiGLU experts, a shared expert (source: K2 Table 2).

Shapes: B rows, T tokens in a row, N tokens, D hidden, E routed experts, F expert width, G = 2 F, K experts per token,
S token-expert pairs sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import TextConfig
from model.network.expert_share import ExpertShare
from model.network.forward_context import PLAIN, ForwardContext, SequenceGroup
from model.network.operations.choice import (
    differentiable_operations,
    grouped_products,
    operations,
)
from model.network.precision import GRANULE, gated_ffn
from model.network.quantization import in_precision


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), [..., D] to [..., D]: the dense FFN and the shared expert."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, context: ForwardContext = PLAIN) -> Tensor:
        return gated_ffn(x, self.gate_proj, self.up_proj, self.down_proj, context.products)


class Router(nn.Module):
    """Chooses experts by their sigmoid scores plus a bias; the bias changes the choice only, not the combine weights.

    No gradient moves the bias: ``update_bias`` moves it by the load. ``load_E`` counts the tokens that each expert got
    since ``update_bias`` was last called; ``aux_loss`` is the sequence-wise balance loss of the last forward, already
    times ``aux_loss_alpha``.
    """

    load_E: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.n_routed_experts), requires_grad=False)
        self.register_buffer("load_E", torch.zeros(config.n_routed_experts), persistent=False)
        self.aux_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor, context: ForwardContext = PLAIN) -> tuple[Tensor, Tensor]:
        """Expert ids (int64) and combine weights (float32), both [B * T, K]."""
        config = self.config
        logits_BTE = F.linear(x_BTD.float(), self.weight.float())
        learns = self.training or torch.is_grad_enabled()
        route = differentiable_operations(logits_BTE, self.e_score_correction_bias, learns=learns).route
        scores_BTE, chosen_BTK, weights_BTK = route(
            logits_BTE, self.e_score_correction_bias, config.num_experts_per_tok, config.routed_scaling_factor
        )
        if self.training:
            self._balance(scores_BTE, chosen_BTK, context.sequence)
        return chosen_BTK.flatten(0, 1), weights_BTK.flatten(0, 1)

    def _balance(self, scores_BTE: Tensor, chosen_BTK: Tensor, sharing: SequenceGroup | None) -> None:
        """Balance within each row: alpha * sum_e (share of row's choices * E) * (mean normalised score).

        Where ranks share the rows, the choices are those of the whole rows and the loss is this rank's share of it: it
        is linear in the scores, so the shares add up.
        """
        config, (rows, tokens, experts) = self.config, scores_BTE.shape
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
        """Outputs [N, D] in ``dtype``, or in that of x."""
        dtype = dtype or x_ND.dtype
        ctx.dtypes = (x_ND.dtype, weights_NK.dtype, gate_up_EGD.dtype)
        ctx.ops, ctx.grouped = operations(x_ND), grouped_products(x_ND)
        x_ND, gate_up_EGD, down_EDF = (t.to(dtype) for t in (x_ND, gate_up_EGD, down_EDF))
        granule = 1 if dtype == ctx.dtypes[2] else GRANULE
        row_NK, token_S, weight_S, end_E = ctx.ops.sort_by_expert(chosen_NK, weights_NK, len(gate_up_EGD), granule)
        x_SD = x_ND.index_select(0, token_S)
        h_SG = ctx.grouped.product(x_SD, gate_up_EGD.mT, end_E)
        act_SF = ctx.ops.swiglu(h_SG)
        y_SD = ctx.grouped.product(act_SF, down_EDF.mT, end_E)
        kept = (x_SD, weight_S, token_S, row_NK, end_E, h_SG, act_SF, y_SD, gate_up_EGD, down_EDF)
        ctx.save_for_backward(*kept)
        return ctx.ops.combine(y_SD, row_NK, weight_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = grads
        x_SD, weight_S, token_S, row_NK, end_E, h_SG, act_SF, y_SD, gate_up_EGD, down_EDF = ctx.saved_tensors
        of_x, of_weights, of_experts = ctx.dtypes
        grad_SD, grad_weight_S = ctx.ops.combine_backward(grad_ND, y_SD, token_S, weight_S)
        grad_weights_NK = grad_weight_S[row_NK].to(of_weights)
        grad_down_EDF = ctx.grouped.outer(grad_SD, act_SF, end_E).to(of_experts)
        grad_h_SG = ctx.ops.swiglu_backward(ctx.grouped.product(grad_SD, down_EDF, end_E), h_SG)
        grad_gate_up_EGD = ctx.grouped.outer(grad_h_SG, x_SD, end_E).to(of_experts)
        grad_x_SD = ctx.grouped.product(grad_h_SG, gate_up_EGD, end_E)
        grad_x_ND = ctx.ops.combine(grad_x_SD, row_NK, torch.ones_like(weight_S)).to(of_x)
        return grad_x_ND, grad_weights_NK, None, grad_gate_up_EGD, grad_down_EDF, None


def experts_without_gradients(
    x_ND: Tensor,
    weights_NK: Tensor,
    chosen_NK: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    context: ForwardContext = PLAIN,
) -> Tensor:
    """Outputs [N, D] of the routed experts, with nothing kept for a backward: the bits are ``GroupedExperts``'."""
    dtype, ops = context.products or x_ND.dtype, operations(x_ND)
    granule = 1 if dtype == gate_up_EGD.dtype else GRANULE
    row_NK, token_S, weight_S, end_E = ops.sort_by_expert(chosen_NK, weights_NK, len(gate_up_EGD), granule)
    x_SD = x_ND.to(dtype).index_select(0, token_S)
    y_SD = grouped_products(x_SD).ffn(x_SD, gate_up_EGD.to(dtype), down_EDF.to(dtype), end_E, ops.swiglu)
    return ops.combine(y_SD, row_NK, weight_S)


class Experts(nn.Module):
    """The routed experts, with stacked weights; ``model.checkpoint.tensor_names`` gives each its released name.

    ``held`` numbers the experts that this process holds, of ``count``. ``group`` carries tokens to the ranks that hold
    their experts (``model.parallel.expert_parallel``); None: this process holds all experts.
    """

    group: Callable[..., Tensor] | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.count, self.held = experts, range(experts)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def hold(self, share: ExpertShare) -> None:
        """Keep only that share of the experts, all of which must be here.

        Raises:
            MoonflowError: the experts do not divide evenly.
        """
        self.held = share.of(self.count)
        for name, weight in list(self.named_parameters()):
            own = weight.detach()[self.held.start : self.held.stop].clone()
            setattr(self, name, nn.Parameter(own, requires_grad=weight.requires_grad))
        if share.parts > 1:
            self.group = _without_the_others

    def forward(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, context: ForwardContext = PLAIN) -> Tensor:
        """Outputs [N, D]: each token's chosen experts, weighted and summed."""
        held = partial(self._held, context)
        if self.group is not None:
            return self.group(held, x_ND, weights_NK, chosen_NK)
        return held(x_ND, weights_NK, chosen_NK)

    def _held(self, context: ForwardContext, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Outputs of the experts that this process holds; ``chosen_NK`` numbers them from 0."""
        gate_up_EGD = in_precision(self.gate_up_proj, context.expert_precision)
        down_EDF = in_precision(self.down_proj, context.expert_precision)
        if torch.is_grad_enabled():
            return GroupedExperts.apply(x_ND, weights_NK, chosen_NK, gate_up_EGD, down_EDF, context.products)
        return experts_without_gradients(x_ND, weights_NK, chosen_NK, gate_up_EGD, down_EDF, context)


def _without_the_others(*_: Any) -> NoReturn:
    raise RuntimeError("other ranks hold the other experts: open the model's engine first")


class MixtureOfExperts(nn.Module):
    """Routed experts, weighted, plus the shared expert unscaled; [B, T, D] to [B, T, D]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = SwiGLU(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BTD: Tensor, context: ForwardContext = PLAIN) -> Tensor:
        chosen_NK, weights_NK = self.gate(x_BTD, context)
        routed_ND = self.experts(x_BTD.flatten(0, 1), weights_NK, chosen_NK, context)
        return routed_ND.view_as(x_BTD) + self.shared_experts(x_BTD, context)
