"""How tests compare tensors and batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.network.batch import Batch
from model.network.config import ModelConfig
from model.network.expert_share import ExpertShare
from model.parallel.expert_parallel import is_expert


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """To the bit, under the same names."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def part_of(whole: Mapping[str, Tensor], config: ModelConfig, share: ExpertShare) -> dict[str, Tensor]:
    """What a rank with that share of the experts holds of a whole model's ``state_dict``."""
    mine = share.of(config.text_config.n_routed_experts)
    return {name: value[mine.start : mine.stop] if is_expert(name) else value for name, value in whole.items()}


def different_fields(one: Batch, other: Batch) -> list[str]:
    """Names of the fields in which two batches differ; both have the same fields."""
    pairs = zip(vars(one).items(), vars(other).values(), strict=True)
    return [name for (name, a), b in pairs if not (torch.equal(a, b) if isinstance(a, Tensor) else a == b)]


def distance(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference by the norm of what was expected."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())
