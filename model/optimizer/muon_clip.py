"""MuonClip: Muon for matrices, AdamW for the rest, QK-clip after the step
(source: K2 section 2.1; Moonlight, arXiv 2502.16982).

Shapes: G matrices of one shape, n x m each; E experts; H heads, K query dims, U nope and value dims of a head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.network.attention import MultiheadLatentAttention
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(g_Gnm: Tensor, precision: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton-Schulz iteration: each matrix's singular values are moved to about 1 (0.7 to 1.2).

    In bfloat16, as Muon's authors do: the iteration corrects its own rounding, and matrix units make it cheap. Each
    product also adds (``baddbmm``), which saves passes over memory and half of the rounding.
    """
    a, b, c = NEWTON_SCHULZ
    tall = g_Gnm.shape[-2] > g_Gnm.shape[-1]
    x = (g_Gnm.mT.contiguous() if tall else g_Gnm).reshape(-1, *sorted(g_Gnm.shape[-2:]))
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(precision)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g_Gnm.dtype).view_as(g_Gnm)


def muon_updates(corrected: list[Tensor], precision: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """The updates of whole matrices [n, m] or stacks of them [E, n, m], in the order and shapes given.

    An update is 0.2 * sqrt(max(n, m)) times the orthogonalised matrix; the learning rate is not in it yet.
    """
    # Matrices of one shape, tall ones transposed, are one batch of products: n x m with n <= m.
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrices in enumerate(corrected):
        rows, columns = matrices.shape[-2:]
        by_shape[min(rows, columns), max(rows, columns)].append(index)
    updates = list(corrected)
    for (rows, columns), members in by_shape.items():
        wide = [_wide(corrected[index]).reshape(-1, rows, columns) for index in members]
        orthogonal = orthogonalise(torch.cat(wide), precision) * (0.2 * columns**0.5)
        for index, update in zip(members, orthogonal.split([len(part) for part in wide]), strict=True):
            shape = corrected[index].shape
            updates[index] = update.mT.reshape(shape) if shape[-2] > shape[-1] else update.view(shape)
    return updates


def is_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: matrices, stacked or not, except embeddings, head, position grid and patch
    embedding."""
    outside = ("embed_tokens", "lm_head", "pos_emb", "patch_embed")
    return parameter.ndim in (2, 3) and not any(part in name for part in outside)


class MuonClip(torch.optim.Optimizer):
    """One learning rate for both rules: the factor 0.2 * sqrt(max(n, m)) gives Muon's update AdamW's usual size.

    Args:
        named_parameters: trained parameters; their names key the saved state.
        learning_rate: of both rules.
        momentum: of Muon (Nesterov).
        betas, eps: of AdamW.
        weight_decay: decoupled, on matrices only.

    Attributes:
        precision: of Newton-Schulz, ``narrow_products``. In bfloat16 its rounding depends on how matrices are batched;
            in float32 the loss curve is the same on any number of ranks.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        self.names: dict[Tensor, str] = {}
        muon: list[nn.Parameter] = []
        adamw: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            self.names[parameter] = name
            (muon if is_muon(name, parameter) else adamw).append(parameter)
        defaults = {"lr": learning_rate, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        groups = [{"params": muon, "rule": "muon"}, {"params": adamw, "rule": "adamw"}]
        super().__init__([group for group in groups if group["params"]], defaults)
        self.precision = narrow_products(next(iter(self.names), torch.empty(0)).device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient; the others are not decayed either."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                (self._muon if group["rule"] == "muon" else self._adamw)(group, trained)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        self._move(group, parameters, muon_updates(self._nesterov(group, parameters), self.precision))

    def _move(self, group: dict[str, Any], parameters: list[Tensor], updates: list[Tensor]) -> None:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _nesterov(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """Add the gradients to the momentum; returns the gradients, corrected by the momentum."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = self._slots(parameters, "momentum")
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = self._slots(parameters, "exp_avg"), self._slots(parameters, "exp_avg_sq")
        counts = []
        for parameter in parameters:
            step = self.state[parameter].setdefault("step", torch.zeros(()))
            step += 1
            counts.append(int(step))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_div(squares, [1 - beta2**count for count in counts])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        decayed = [parameter for parameter in parameters if self._decays(parameter)]
        if decayed:
            torch._foreach_mul_(decayed, 1 - group["lr"] * group["weight_decay"])
        rates = [-group["lr"] / (1 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(parameters, means, denominators, rates)

    def _decays(self, parameter: Tensor) -> bool:
        return parameter.ndim > 1

    def _slots(self, parameters: list[Tensor], slot: str) -> list[Tensor]:
        """Each parameter's state tensor of that name; zeros where it has none yet."""
        for parameter in parameters:
            if slot not in self.state[parameter]:
                self.state[parameter][slot] = torch.zeros_like(parameter)
        return [self.state[parameter][slot] for parameter in parameters]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this rate from the next step on."""
        for group in self.param_groups:
            group["lr"] = learning_rate

    def named_state(self) -> dict[str, Tensor]:
        """The state as flat tensors, ``<parameter name>/<slot>``, for safetensors."""
        return {
            f"{name}/{slot}": value
            for parameter, name in self.names.items()
            for slot, value in self.state.get(parameter, {}).items()
        }

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state of this optimizer's parameters out of ``named_state``; other keys are ignored."""
        by_name = {name: parameter for parameter, name in self.names.items()}
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            if name in by_name:
                parameter = by_name[name]
                # A step count stays on the device it was read to; everything else moves to its parameter's device.
                self.state[parameter][slot] = value.to(parameter.device if value.ndim else value.device, copy=True)


def _wide(matrices: Tensor) -> Tensor:
    """The matrices, transposed if they have more rows than columns."""
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices


class LargestLogits:
    """Each head's largest logit over all forwards of a step. An attention keeps only that of the last forward."""

    def __init__(self, attentions: Iterable[MultiheadLatentAttention]) -> None:
        self.attentions = list(attentions)
        self.forget()

    def forget(self) -> None:
        """Forget the logits so far: a new step begins."""
        self._so_far: list[Tensor | None] = [None] * len(self.attentions)

    def add(self) -> None:
        """After each forward and backward: set every attention's ``max_logit_H`` to the step's largest so far."""
        for number, (attention, before_H) in enumerate(zip(self.attentions, self._so_far, strict=True)):
            if before_H is not None and attention.max_logit_H is not None:
                attention.max_logit_H = torch.maximum(before_H, attention.max_logit_H)
            self._so_far[number] = attention.max_logit_H


@torch.no_grad()
def clip_factors(attention: MultiheadLatentAttention, threshold: float = 100.0) -> tuple[Tensor, Tensor] | None:
    """The factors of the rows of q_b_proj's and kv_b_proj's weights, or None if no head passed ``threshold``.

    With gamma = threshold / the head's largest logit: q_nope and k_nope rows by sqrt(gamma), q_rope rows by gamma; the
    shared k_rope stays. The factors are float32 on the CPU.
    """
    if attention.max_logit_H is None or not (attention.max_logit_H > threshold).any():
        return None
    config, nope = attention.config, attention.config.qk_nope_head_dim
    q_HK = torch.ones(config.num_attention_heads, config.qk_head_dim)
    kv_HU = torch.ones(config.num_attention_heads, nope + config.v_head_dim)
    for head, largest in enumerate(attention.max_logit_H.tolist()):
        if largest > threshold:
            gamma = threshold / largest
            q_HK[head, :nope] = gamma**0.5
            q_HK[head, nope:] = gamma
            kv_HU[head, :nope] = gamma**0.5
    return q_HK.flatten(), kv_HU.flatten()


@torch.no_grad()
def qk_clip(attentions: Iterable[MultiheadLatentAttention], threshold: float = 100.0) -> int:
    """Scale down the query and key rows of heads whose largest logit passed ``threshold``; returns how many heads."""
    clipped = 0
    for attention in attentions:
        factors = clip_factors(attention, threshold)
        if factors is not None and attention.max_logit_H is not None:
            for weight, factor in zip((attention.q_b_proj.weight, attention.kv_b_proj.weight), factors, strict=True):
                weight *= factor.to(weight.device, weight.dtype).unsqueeze(1)
            clipped += int((attention.max_logit_H > threshold).sum())
    return clipped


def build_optimizer(model: KimiK25, learning_rate: float, *, weight_decay: float = 0.1) -> MuonClip:
    """MuonClip over the parameters that require a gradient."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return MuonClip(trained, learning_rate, weight_decay=weight_decay)
