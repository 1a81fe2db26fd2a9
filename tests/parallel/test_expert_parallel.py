"""Routed experts divided among real ranks give the numbers of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.boundary.errors import MoonflowError
from model.network.config import preset
from model.network.expert_share import ExpertShare
from model.network.forward_context import ForwardContext
from model.network.moe import MixtureOfExperts
from model.parallel.expert_parallel import ExpertGroup, expert_group, join_experts, whole_state
from tests.drawn import draw, randomise
from tests.equality import same_tensors
from tests.gloo import group_of, on_ranks

CONFIG = preset("tiny").text_config.model_copy(
    update={"hidden_size": 24, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2}
)
WORLD = 4
# What is added to the routers' choice: expert 5 gets no token; only experts 0 and 1 get any.
BIASES = {
    "even": torch.zeros(8),
    "one expert idle": torch.tensor([0.3, 0, 0, 0, 0, -9.0, 0.2, 0]),
    "all tokens to one rank": torch.tensor([9.0, 9.0, 0, 0, 0, 0, 0, 0]),
}
SIZES = (2, 4)
TOKENS = (5, 9, 3, 8)  # of each rank


def make(case: str) -> MixtureOfExperts:
    mixture = MixtureOfExperts(CONFIG)
    randomise(mixture, seed=1, std=0.3)
    mixture.gate.e_score_correction_bias.data.copy_(BIASES[case])
    return mixture.train()


def inputs(rank: int) -> tuple[Tensor, Tensor]:
    """A rank's tokens and the gradient of its outputs."""
    return draw(1, TOKENS[rank], 24, seed=10 + rank).requires_grad_(), draw(1, TOKENS[rank], 24, seed=20 + rank)


def run(mixture: MixtureOfExperts, x: Tensor, grad: Tensor, wide: bool = True) -> dict[str, Tensor]:
    out = mixture(x, ForwardContext(None if wide else torch.bfloat16))
    out.backward(grad)
    found = {name: p.grad for name, p in mixture.named_parameters() if p.grad is not None}
    return {**found, "x": x.grad, "out": out.detach(), "load": mixture.gate.load_E}


def on_rank(rank: int) -> dict[tuple[int, str], dict[str, Tensor]]:
    results: dict[tuple[int, str], dict[str, Tensor]] = {}
    for size in SIZES:
        group = group_of(rank, WORLD, size)
        for case in BIASES:
            mixture = make(case)
            holder = nn.ModuleDict({"layer": nn.ModuleDict({"mlp": mixture})})
            whole = {name: value.clone() for name, value in holder.state_dict().items()}
            with pytest.raises(ValueError, match="the model has experts range"):
                join_experts(holder, group)
            mixture.experts.hold(ExpertShare(rank % size, size))
            with pytest.raises(RuntimeError, match="open the model's engine first"):
                run(mixture, *inputs(rank))
            mixture.zero_grad()
            mixture.gate.load_E.zero_()
            join_experts(holder, group)
            results[size, case] = run(mixture, *inputs(rank))
            shared = expert_group(holder)
            assert shared is not None and mixture.experts.down_proj.shape[0] == 8 // size
            assert same_tensors(whole_state(holder), whole)
            assert torch.equal(mixture.experts.down_proj, shared.slice(whole["layer.mlp.experts.down_proj"]))
        narrow = make("even")
        narrow.experts.hold(ExpertShare(rank % size, size))
        join_experts(narrow, group)
        results[size, "bfloat16"] = run(narrow, *inputs(rank), wide=False)
    with pytest.raises(MoonflowError, match="6 routed experts do not divide among 4 ranks"):
        ExpertGroup(dist.group.WORLD, 6)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(WORLD, on_rank, tmp_path_factory.mktemp("ranks"))


def alone(case: str, ranks: list[int], wide: bool = True) -> dict[str, Tensor]:
    """One process on the tokens of all these ranks."""
    x, grad = (torch.cat(parts, dim=1) for parts in zip(*map(inputs, ranks), strict=True))
    return run(make(case), x.detach().requires_grad_(), grad, wide)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [*BIASES, "bfloat16"])
def test_outputs_and_gradients_are_those_of_one_process(results, size, case):
    wide = case != "bfloat16"
    for start in range(0, WORLD, size):
        members = list(range(start, start + size))
        expected = alone(case if wide else "even", members, wide)
        got = [results[rank][size, case] for rank in members]
        for name, value in expected.items():
            if name in ("x", "out"):
                found = torch.cat([each[name] for each in got], dim=1)
            elif name.startswith("experts."):
                found = torch.cat([each[name] for each in got])  # the owner's gradient is whole
            else:
                found = torch.stack([each[name] for each in got]).sum(0)
            assert value.any()
            torch.testing.assert_close(found, value, atol=1e-5 if wide else 0.05, rtol=1e-5 if wide else 0.05)
        load_E = expected["load"]
        if "idle" in case:
            assert load_E[5] == 0 and load_E.max() >= 1.5 * load_E.mean()
            assert not results[start + 5 * size // 8][size, case]["experts.down_proj"][5 % (8 // size)].any()
        if "one rank" in case:
            assert load_E[2:].sum() == 0
