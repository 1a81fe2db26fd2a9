"""What the plan says of FLOPs and activations, against real training steps with a target at every position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from model.network.batch import Batch
from model.network.config import ModelConfig, preset
from model.network.decoder import DecoderLayer
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.vision import Block
from model.plan.activations import text_bytes, vision_bytes
from model.plan.flops import text_forward, text_training, vision_forward, vision_training
from model.plan.layout import PlannedLayout
from model.plan.memory import state_figures
from model.plan.parameters import Parameters
from tests.configs import changed
from tests.kept_bytes import KeptBytes
from tests.training import batch_loss

aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """Rows of one document each, with an image of ``side`` x ``side`` patches in front unless that is 0.

    There are enough tokens that an expert's padding rows, in its last granule, are few compared with those it was sent.
    ``layers`` and ``blocks``: of the decoder and of the vision tower, where they are fewer than the preset's.
    """

    preset: str
    rows: int
    tokens: int
    side: int
    layers: int = 0
    blocks: int = 0

    def __str__(self) -> str:
        return f"{self.preset}-{self.layers or 'all'}-layers-{'images' if self.side else 'text'}"

    @property
    def config(self) -> ModelConfig:
        config = preset(self.preset)
        if not self.layers:
            return config
        return changed(config, {"num_hidden_layers": self.layers}, {"vt_num_hidden_layers": self.blocks})

    def batch(self) -> Batch:
        generator, config = torch.Generator().manual_seed(0), self.config
        ids_BT = torch.randint(config.text_config.vocab_size // 2, (self.rows, self.tokens), generator=generator)
        ids_BT[:, : self.side**2 // 4] = config.media_placeholder_token_id
        every = ids_BT.numel()
        return Batch(
            ids_BT,
            torch.arange(self.tokens).expand(self.rows, -1),
            torch.zeros_like(ids_BT),
            torch.arange(every),
            ids_BT.flatten().roll(-1),
            torch.ones(every, dtype=torch.bool),
            torch.arange(self.rows).repeat_interleave(self.tokens),
            torch.randn(self.rows * self.side**2, 3, 14, 14, generator=generator) if self.side else None,
            [(1, self.side, self.side)] * self.rows if self.side else [],
        )


TINY_TEXT = Case("tiny", rows=16, tokens=256, side=0)
TINY = Case("tiny", rows=16, tokens=256, side=8)
# Two of small's 12 decoder layers, one dense and one of experts, and two of its 12 vision blocks: the rest are alike.
CUT_SMALL = Case("small", rows=3, tokens=512, side=16, layers=2, blocks=2)
SMALL = Case("small", rows=4, tokens=512, side=16)
CASES = [TINY_TEXT, TINY, pytest.param(CUT_SMALL, marks=pytest.mark.slow), pytest.param(SMALL, marks=pytest.mark.long)]


@dataclass(frozen=True)
class Measured:
    forward: int  # FLOPs
    training: int  # FLOPs, the forward's among them
    kept: int  # bytes, weights left out


def fused_attention(q, k, v, *_, **__) -> int:
    return sdpa_flop_count(q, k, v)


def fused_attention_backward(_, q, k, v, *__, **___) -> int:
    return 2 * sdpa_flop_count(q, k, v)  # as if the scores were kept


# torch counts fused attention on a GPU only.
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: fused_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_attention_backward,
}


def step(case: Case, kept: KeptBytes) -> Measured:
    """A forward and its backward, counted."""
    model = new_model(case.config).train()
    kept.leave_out(*model.parameters(), *model.buffers())
    with (
        kept.counted(),
        FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter,
    ):
        loss, _ = batch_loss(model, case.batch(), ForwardContext(torch.bfloat16))
        forward = counter.get_total_flops()
        loss.backward()
    return Measured(forward, counter.get_total_flops(), kept.peak)


@cache
def measured(case: Case) -> Measured:
    kept = KeptBytes()
    found = step(case, kept)
    assert kept.bytes == 0, "everything that was kept has been let go"
    return found


def recomputed(forward, kept: KeptBytes):
    """``forward`` that keeps its inputs only; mask and rotation are all layers' and no layer's own."""

    def call(layer, *inputs):
        kept.leave_out(*(each for each in inputs[1:] if isinstance(each, Tensor)))
        return checkpoint(forward, layer, *inputs, use_reentrant=True)

    return call


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flops_are_those_counted(case):
    config, patches = case.config, case.side**2
    image = (vision_forward(config, patches), vision_training(config, patches)) if patches else (0, 0)
    forward = case.rows * (case.tokens * text_forward(config, case.tokens) + image[0])
    training = case.rows * (case.tokens * text_training(config, case.tokens) + image[1])
    assert measured(case).forward == pytest.approx(forward, rel=0.05)
    assert measured(case).training == pytest.approx(training, rel=0.05)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_activations_are_those_kept(case):
    config, parts = case.config, Parameters(case.config)
    copied = parts.all.products - (0 if case.side else (parts.vision_tower + parts.projector).products)
    planned = case.rows * case.tokens * text_bytes(config, case.tokens, parts.dense_layers, recompute=False)
    planned += case.rows * case.side**2 * vision_bytes(config, recompute=False)
    assert measured(case).kept - 2 * copied == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_layers_computed_again_keep_their_inputs_and_cost_one_more_forward(case, monkeypatch):
    kept = KeptBytes()
    for layer in (DecoderLayer, Block):
        monkeypatch.setattr(layer, "forward", recomputed(layer.forward, kept))
    found, config, parts = step(case, kept), case.config, Parameters(case.config)
    copies, *_ = state_figures(config, PlannedLayout(gpus=1, zero=1, experts=1, sequence=1, recompute=True))
    planned = case.rows * case.tokens * text_bytes(config, case.tokens, parts.dense_layers, recompute=True)
    planned += case.rows * case.side**2 * vision_bytes(config, recompute=True) + copies.value
    assert found.kept == pytest.approx(planned, rel=0.05)
    flops = case.tokens * text_training(config, case.tokens, recompute=True)
    flops = case.rows * (flops + vision_training(config, case.side**2, recompute=True))
    assert found.training == pytest.approx(flops, rel=0.05)
