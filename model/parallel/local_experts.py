"""This rank's experts where DeepSpeed's ZeRO divides everything else: hidden from it, with their own optimizer (ours).

ZeRO cuts parameters over all ranks. The experts are already divided, and each rank holds different ones: so they are
taken out of the modules' parameters, their gradients are summed over the ranks that hold copies, and MuonClip updates
them where they are. A rank holds gradients and momentum of its local experts only, so their memory falls with
``expert_parallel``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.checkpoint.slices import Slice
from model.network.moe import Experts
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import MuonClip
from model.optimizer.optimization import Optimization
from model.parallel.expert_parallel import MATRICES, ExpertGroup, join_experts
from model.parallel.ranks import Ranks
from model.parallel.reduction import local_state, state_to_write


class LocalExperts:
    """This rank's experts of ``model``; they stay attributes of their modules, but are parameters of no module.

    Every rank calls the same methods in the same order. The ranks' layout divides the experts.
    """

    def __init__(self, model: KimiK25, optimization: Optimization, ranks: Ranks) -> None:
        assert ranks.experts is not None
        self.model, self.ranks = model, ranks
        join_experts(model, ranks.experts)
        self._modules = {path: module for path, module in model.named_modules() if isinstance(module, Experts)}
        self.parameters: dict[str, nn.Parameter] = {}
        for path, module in self._modules.items():
            for matrix in MATRICES:
                parameter = module._parameters.pop(matrix)
                assert parameter is not None
                name = f"{path}.{matrix}"
                parameter.requires_grad_(optimization.learns(name))
                self.parameters[name] = vars(module)[matrix] = parameter
        trained = [(name, parameter) for name, parameter in self.parameters.items() if parameter.requires_grad]
        self.optimizer: MuonClip | None = None
        if trained:
            self.optimizer = MuonClip(trained, optimization.learning_rate, weight_decay=optimization.weight_decay)

    def sum_gradients(self, scale: float) -> float:
        """Replace each gradient by the sum over its copies, times ``scale``; returns the squared norm of all."""
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
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def named_state(self) -> dict[str, Tensor | Slice]:
        """The part of the experts' optimizer state that this rank writes."""
        state = {} if self.optimizer is None else self.optimizer.named_state()
        return state_to_write(state, self.model, self.ranks)

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state of this rank's experts from a state that any number of ranks saved."""
        if self.optimizer is not None:
            mine = {key: tensors[key] for key in tensors if key.rpartition("/")[0] in self.parameters}
            self.optimizer.load_named_state(local_state(mine, self.model))

    def weights(self) -> dict[str, Tensor]:
        """All experts by name, float32; every rank of the group calls it."""
        return {name: self._group(name).whole(value) for name, value in self.held().items()}

    def held(self) -> dict[str, Tensor]:
        """This rank's experts by name, float32."""
        return {name: value.detach().float() for name, value in self.parameters.items()}

    def close(self) -> None:
        """Give the modules their parameters back."""
        for module in self._modules.values():
            module._parameters |= {matrix: vars(module).pop(matrix) for matrix in MATRICES}

    def _group(self, name: str) -> ExpertGroup:
        group = self._modules[name.rpartition(".")[0]].group
        assert isinstance(group, ExpertGroup)
        return group
