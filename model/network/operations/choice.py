"""Which implementation computes what: torch's operators or those for a CPU (source: ours).

On a CPU the kernels of ``model.network.kernels`` take one pass over memory where torch's operators take several, and
leave Python's lock to other threads. On an accelerator torch's operators are used throughout.

Shapes: N rows (tokens), K experts per token, E experts, D features, F = G / 2 features, S token-expert pairs sorted by
expert, C rows of a chunk, V vocabulary, B rows of a batch, T tokens in one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from model.network.documents import Documents
from model.network.forward_context import ForwardContext
from model.network.operations import cpu_grouped, cpu_ops, torch_grouped, torch_ops
from model.network.packed_attention import LONGEST


class Operations(Protocol):
    """One implementation: ``torch_ops`` or ``cpu_ops``."""

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x / rms(x) * weight in ``dtype``, and 1 / rms(x), [...]. x is contiguous."""
        ...

    def rms_norm_backward(self, grad: Tensor, x: Tensor, weight_D: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the weight."""
        ...

    def add_norm(
        self, x: Tensor, result: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x + result in x's dtype, ``rms_norm`` of it in ``dtype``, and 1 / rms of it. x is contiguous."""
        ...

    def add_norm_backward(
        self, grad_total: Tensor, grad: Tensor, total: Tensor, weight_D: Tensor, inverse: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, of the result (in ``dtype``) and of the weight."""
        ...

    def swiglu(self, h_NG: Tensor) -> Tensor:
        """silu(first half) * second half, [N, F]."""
        ...

    def swiglu_backward(self, grad_NF: Tensor, h_NG: Tensor) -> Tensor:
        """The gradient of ``h_NG``; ``grad_NF`` may be overwritten."""
        ...

    def route(self, logits: Tensor, bias_E: Tensor, count: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Sigmoid scores [..., E], the ``count`` experts of each token with the largest score + bias, and their scores
        normalised to a sum of ``factor``, both [..., count]. ``logits`` may be overwritten."""
        ...

    def sort_by_expert(
        self, chosen_NK: Tensor, weights_NK: Tensor, experts: int, granule: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs sorted by expert, each expert's rows filled up to a whole number of granules.

        Returns each pair's row [N, K], each row's token [S] and combine weight [S], and where each expert's rows end
        [E]. Rows that fill up a granule read token 0 with weight 0: they change neither output nor gradients.
        """
        ...

    def combine(self, y_SD: Tensor, row_NK: Tensor, weight_S: Tensor) -> Tensor:
        """Each token's rows, weighted and summed, [N, D]."""
        ...

    def combine_backward(
        self, grad_ND: Tensor, y_SD: Tensor, token_S: Tensor, weight_S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of y [S, D] and of the rows' weights [S]."""
        ...

    def target_logprobs(self, logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> None:
        """Writes log softmax(logits)[target] to ``logprobs_C``."""
        ...

    def less_target(self, logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> Tensor:
        """softmax(logits) less 1 at the target, [C, V]; ``logits_CV`` may be overwritten.

        Where p of the target is near 1, p - 1 is small: it is computed from the log-prob in wide precision, not as a
        difference of narrow numbers.
        """
        ...


class GroupedProducts(Protocol):
    """One matrix product per expert, in one call: ``torch_grouped`` or ``cpu_grouped``.

    ``end_E`` (int64) says where each expert's rows end.
    """

    def product(self, x_SD: Tensor, weight_EDF: Tensor, end_E: Tensor) -> Tensor:
        """x @ weight of the row's expert, [S, F]."""
        ...

    def ffn(
        self, x_SD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, end_E: Tensor, swiglu: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """down @ swiglu(gate_up @ x) of the row's expert, [S, D], for a caller that needs no gradient."""
        ...

    def outer(self, left_SD: Tensor, right_SF: Tensor, end_E: Tensor) -> Tensor:
        """left^T @ right over each expert's rows, [E, D, F]; zero for an expert without rows."""
        ...


def kernels_take(x: Tensor, *wide: Tensor) -> bool:
    """Whether kernels can compute ``x``. ``wide``: other tensors, which they read or write in float32 or float64."""
    return x.is_cpu and all(each.dtype in (torch.float32, torch.float64) for each in wide)


def operations(x: Tensor, *wide: Tensor) -> Operations:
    """The operations for ``x``, with ``wide`` as in ``kernels_take``."""
    return cpu_ops if kernels_take(x, *wide) else torch_ops


def differentiable_operations(x: Tensor, *wide: Tensor, learns: bool) -> Operations:
    """``operations`` for a caller without a backward of its own: torch's, which autograd knows, where it ``learns``."""
    return torch_ops if learns else operations(x, *wide)


def grouped_products(x_SD: Tensor) -> GroupedProducts:
    """The experts' products for ``x_SD``, which depend on its device alone: a loop on a CPU takes every dtype."""
    return cpu_grouped if x_SD.is_cpu else torch_grouped


def attends_by_products(documents: Documents, products: torch.dtype | None) -> bool:
    """Whether attention over these rows is ``PackedAttention``, and not torch's fused kernel."""
    return products is not None and documents.device.type == "cpu" and documents.tokens <= LONGEST


def forwards_by_kernels(decoder: nn.Module, x_BTD: Tensor, documents: Documents, context: ForwardContext) -> bool:
    """Whether ``model.network.kernel_forward`` can replace the decoder's layers: no gradient is needed, no rank or hook
    uses intermediate results, and all weights are contiguous and of the dtype of x, none of them a bias."""
    if torch.is_grad_enabled() or not attends_by_products(documents, context.products):
        return False
    if context.sequence is not None or not kernels_take(x_BTD, x_BTD):
        return False
    for module in decoder.modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return False
        if getattr(module, "group", None) is not None:  # experts on several ranks
            return False
        for name, weight in module.named_parameters(recurse=False):
            if name == "bias" or weight.dtype != x_BTD.dtype or not weight.is_contiguous():
                return False
    return True


def reads_by_kernels(weight: Tensor) -> bool:
    """Whether new tokens over a cache, with weights like this one, are ``model.network.kernel_cached``."""
    return weight.is_cpu and weight.dtype == torch.float32
