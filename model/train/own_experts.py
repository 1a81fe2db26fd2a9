"""Divided experts beside an engine that divides all else: out of its sight, with an optimizer of their own (ours).

DeepSpeed's ZeRO cuts parameters over all ranks. Experts are divided already, and every rank's are other ones: here they
are taken out of the modules' parameters, their gradients are summed over their copies and MuonClip moves them where
they are. A rank holds gradients and momentum of its own experts alone, so their memory falls with ``expert_parallel``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.expert_parallel import MATRICES, ExpertGroup, divide_experts, gather_experts
from model.moe import Experts
from model.multimodal import KimiK25
from model.train.optimizer import MuonClip
from model.train.phase import Phase
from model.train.ranks import Ranks
from model.train.reduction import held_state, own_state
from model.train.slices import Slice


class OwnExperts:
    """This rank's experts of ``model``; they stay attributes of their modules, but are parameters of none.

    Every rank calls the same methods in the same order. The ranks' layout divides the experts.
    """

    def __init__(self, model: KimiK25, phase: Phase, ranks: Ranks) -> None:
        assert ranks.experts is not None
        self.model, self.ranks = model, ranks
        divide_experts(model, ranks.experts)
        self._modules = {path: module for path, module in model.named_modules() if isinstance(module, Experts)}
        self.parameters: dict[str, nn.Parameter] = {}
        for path, module in self._modules.items():
            for matrix in MATRICES:
                parameter = module._parameters.pop(matrix)
                assert parameter is not None
                name = f"{path}.{matrix}"
                parameter.requires_grad_(phase.learns(name))
                self.parameters[name] = vars(module)[matrix] = parameter
        trained = [(name, parameter) for name, parameter in self.parameters.items() if parameter.requires_grad]
        self.optimizer = MuonClip(trained, phase.learning_rate, weight_decay=phase.weight_decay) if trained else None

    def sum_gradients(self, scale: float) -> float:
        """Make each gradient the sum of its copies' times ``scale``; returns the squared norm of all experts'."""
        trained = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        if not trained:
            return 0.0
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(scale)
        dist.all_reduce(flat, group=self.ranks.expert_copies)
        for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)
        square = flat.double().square().sum()
        dist.all_reduce(square, group=self.ranks.experts)
        return float(square)

    def update(self, rate: float) -> None:
        """MuonClip at that learning rate; forgets the gradients."""
        if self.optimizer is not None:
            self.optimizer.set_learning_rate(rate)
            self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def named_state(self) -> dict[str, Tensor | Slice]:
        """What this rank writes of their optimizer's state."""
        state = {} if self.optimizer is None else self.optimizer.named_state()
        return held_state(state, self.model, self.ranks)

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what is theirs of a state that any number of ranks saved."""
        if self.optimizer is not None:
            mine = {key: tensors[key] for key in tensors if key.rpartition("/")[0] in self.parameters}
            self.optimizer.load_named_state(own_state(mine, self.model))

    def weights(self) -> dict[str, Tensor]:
        """All experts by name, float32; every rank of the group calls it."""
        return {name: self._group(name).whole(value.detach()).float() for name, value in self.parameters.items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take this rank's part of the weights of one process."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._group(name).slice(weights[name]))

    def close(self) -> None:
        """Give the modules their parameters back, all experts on every rank."""
        for module in self._modules.values():
            module._parameters |= {matrix: vars(module).pop(matrix) for matrix in MATRICES}
        gather_experts(self.model)

    def _group(self, name: str) -> ExpertGroup:
        group = self._modules[name.rpartition(".")[0]].group
        assert isinstance(group, ExpertGroup)
        return group
