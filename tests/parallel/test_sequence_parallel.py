"""Rows shared by real ranks give the numbers of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch
from model.network.forward_context import ForwardContext
from model.network.multimodal import KimiK25
from model.parallel.columns import columns
from model.parallel.sequence_parallel import UlyssesGroup
from tests.configs import NARROW
from tests.drawn import random_model, sample
from tests.gloo import group_of, on_ranks
from tests.kept_bytes import KeptBytes
from tests.training import let_learn

WORLD, SIZES = 4, (2, 4)


def only_first_targets(one: TokenizedSample, count: int) -> TokenizedSample:
    mask = one.loss_mask.clone()
    mask[count:] = False
    return TokenizedSample(one.input_ids, mask, one.pixel_values, one.grid_thws)


# Rows of 32 tokens: cuts before columns 8, 16 and 24. The first image of "media" is columns 3 to 10 of its row.
MEDIA = [
    sample(0, 3, (1, 4, 8), 5),
    sample(1, 4, (2, 4, 4), 2, (1, 2, 2), 3),
    sample(2, 9, (1, 8, 8), 6),
    sample(3, 12),
]
CASES: dict[str, tuple[list[TokenizedSample], int]] = {
    "media": (MEDIA, 32),
    "no media": ([sample(4, 11), sample(5, 17), sample(6, 30)], 32),
    "targets on the first rank alone": ([only_first_targets(sample(7, 2, (1, 4, 4), 20), 7)], 32),
    "half a row empty": ([sample(8, 3, (1, 4, 4), 5)], 32),
    "long": ([sample(9, 500), sample(10, 7, (1, 4, 4), 600), sample(11, 9)], 1600),
}


def batch_of(case: str) -> Batch:
    samples, tokens = CASES[case]
    return pack(samples, NARROW.pad_token_id, tokens_per_row=tokens)


def make(part: str = "", threshold: float = 100.0) -> KimiK25:
    model = let_learn(random_model(NARROW, seed=1, std=0.15), part)
    for attention in model.attentions():
        attention.clip_threshold = threshold
    return model.train()


def run(
    model: KimiK25, batch: Batch, targets: int, wide: bool = True, group: UlyssesGroup | None = None
) -> dict[str, Tensor]:
    context = ForwardContext(None if wide else torch.bfloat16, sequence=group)
    kept = KeptBytes()
    kept.leave_out(*model.parameters())
    with kept.counted():
        logprobs_N = model.logprobs(batch, context=context)
        loss = -logprobs_N.sum() / targets + model.auxiliary_loss()
    forward_bytes = kept.bytes
    loss.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    statistics = {
        "load": torch.stack([router.load_E for router in model.routers()]),
        "balance": model.auxiliary_loss().detach(),
        "largest": torch.stack([attention.max_logit_H for attention in model.attentions()]),
    }
    return {**found, **statistics, "logprobs": logprobs_N.detach(), "kept": torch.tensor(forward_bytes)}


# Name -> (case, what learns, bfloat16 products or not, clip threshold).
RUNS = {
    **{case: (case, "", True, 100.0) for case in CASES},
    "bfloat16": ("media", "", False, 100.0),
    "exact logits": ("media", "", True, 0.5),
    "exact logits in bfloat16": ("media", "", False, 0.5),
    "exact logits of long rows": ("long", "", True, 0.5),
    "vision alone learns": ("media", "vision_tower", True, 100.0),
    "routers alone learn": ("no media", "mlp.gate", True, 100.0),
}


def on_rank(rank: int) -> dict[tuple[int, str], dict[str, Tensor]]:
    results = {}
    for size in SIZES:
        group = group_of(rank, WORLD, size)
        for name, (case, learning, wide, threshold) in RUNS.items():
            batch = batch_of(case)
            own = columns(batch, rank % size, size)
            found = run(make(learning, threshold), own, len(batch.targets_N), wide, UlyssesGroup(group))
            results[size, name] = {**found, "targets": own.targets_N, "positions": own.target_positions_N}
    with pytest.raises(MoonflowError, match="rows of 32 tokens do not divide among 3 ranks"):
        columns(batch_of("media"), 0, 3)
    with pytest.raises(MoonflowError, match="3 attention heads do not divide among 4 ranks"):
        UlyssesGroup(dist.group.WORLD).heads_of(3)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(WORLD, on_rank, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone():
    return {
        name: run(make(learning, threshold), batch_of(case), len(batch_of(case).targets_N), wide)
        for name, (case, learning, wide, threshold) in RUNS.items()
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RUNS)
def test_outputs_and_gradients_are_those_of_one_process(results, alone, size, name):
    case, _, wide, _ = RUNS[name]
    expected, got, batch = alone[name], [results[rank][size, name] for rank in range(size)], batch_of(case)
    tokens = batch.input_ids_BT.shape[1]
    places = [
        each["positions"] // (tokens // size) * tokens + each["positions"] % (tokens // size) + r * (tokens // size)
        for r, each in enumerate(got)
    ]
    order_N = torch.cat(places).argsort()
    assert torch.equal(torch.cat(places)[order_N], batch.target_positions_N)
    assert torch.equal(torch.cat([each["targets"] for each in got])[order_N], batch.targets_N)
    for key in expected.keys() - {"kept"}:
        parts = [each[key] for each in got]
        if key == "logprobs":
            found = torch.cat(parts)[order_N]
        elif key == "largest":
            found = torch.stack(parts).amax(0)
        else:
            found = torch.stack(parts).sum(0)
        scale = max(1.0, float(expected[key].abs().max()))
        torch.testing.assert_close(
            found, expected[key], atol=(1e-5 if wide else 3e-2) * scale, rtol=0, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("size", SIZES)
def test_what_a_rank_keeps_for_its_backward_falls_with_their_number(results, alone, size):
    for name in ("no media", "long"):
        for rank in range(size):
            assert float(results[rank][size, name]["kept"]) < 1.3 / size * float(alone[name]["kept"])


def test_a_medium_lies_across_a_cut_and_rows_hold_several_documents():
    batch = batch_of("media")
    pads_BT = batch.input_ids_BT == NARROW.media_placeholder_token_id
    assert (pads_BT[:, 7] & pads_BT[:, 8]).any() and (batch.document_ids_BT.amax(1) > 0).any()
