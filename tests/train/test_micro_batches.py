"""Rows that go through the network in several micro-batches give the step of one, in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from model.network.batch import Batch
from model.network.multimodal import KimiK25
from model.optimizer.optimization import Optimization
from model.parallel.loss import Figures
from model.parallel.rows import micro_batches
from model.train.engine import PlainEngine
from tests.kept_bytes import KeptBytes
from tests.torch_threads import torch_threads
from tests.training import LOSS, gradients
from tests.two_layers import CONFIG, WIDTH, assert_same_gradients, batch_of, largest, make

TWO_ROWS = 2 * WIDTH + WIDTH // 2  # tokens; a third row does not fit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def backward(model: KimiK25, batch: Batch, tokens: int) -> Figures:
    return PlainEngine(model, Optimization(1, 1e-3, micro_batch_tokens=tokens)).backward(batch, LOSS)


def test_rows_are_cut_by_tokens_and_at_least_one_by_one() -> None:
    batch = batch_of("text")
    rows = len(batch.input_ids_BT)
    assert rows > 4

    def cut(tokens: int) -> list[int]:
        return [len(part.input_ids_BT) for part in micro_batches(batch, tokens, CONFIG)]

    assert cut(0) == cut(rows * WIDTH) == [rows]
    assert cut(1) == cut(WIDTH) == [1] * rows
    assert cut(TWO_ROWS) == [2] * (rows // 2) + [1] * (rows % 2)


@pytest.mark.usefixtures("float_is_double")
@pytest.mark.parametrize("tokens", [1, TWO_ROWS])
@pytest.mark.parametrize("case", ["media in some rows", "rows without a target"])
def test_in_float64_the_gradient_is_that_of_all_rows_at_once(case: str, tokens: int) -> None:
    whole, divided, batch = make().double(), make().double(), batch_of(case)
    if batch.pixel_values is not None:
        batch = replace(batch, pixel_values=batch.pixel_values.double())
    figures = backward(whole, batch, 0)
    assert backward(divided, batch, tokens) == pytest.approx(figures, rel=1e-12)
    assert_same_gradients(divided, whole)


def test_in_float32_it_is_to_rounding() -> None:
    whole, divided, batch = make(), make(), batch_of("media in some rows")
    backward(whole, batch, 0)
    backward(divided, batch, 1)
    for name, value in gradients(whole).items():
        scale = max(1.0, float(value.abs().max()))
        assert float((gradients(divided)[name] - value).abs().max()) <= 1e-6 * scale, name


def test_a_head_is_clipped_for_the_largest_logit_of_all_micro_batches() -> None:
    model, batch = make(), batch_of("text")
    alone = []
    for part in micro_batches(batch, 1, CONFIG):
        backward(model, part, 0)
        alone.append(largest(model))
    backward(model, batch, 1)
    assert torch.equal(largest(model), torch.stack(alone).amax(0))
    assert len({int(one.argmax()) for one in torch.stack(alone).flatten(1).T}) > 1


def test_a_step_forgets_the_largest_logits_of_the_one_before() -> None:
    model, batch = make(), batch_of("text")
    engine = PlainEngine(model, Optimization(1, 0.0, micro_batch_tokens=1, weight_decay=0.0))
    found = []
    for step in range(3):
        engine.backward(batch, LOSS)
        found.append(largest(model))
        for attention in model.attentions():
            assert attention.max_logit_H is not None
            attention.max_logit_H += 50.0
        engine.discard() if step else engine.update(0)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_the_peak_of_activations_falls_with_the_micro_batch() -> None:
    batch = batch_of("text")
    peaks = []
    for tokens in (0, 1):
        kept, model = KeptBytes(), make()
        kept.leave_out(*model.parameters())  # kept by every forward, and take no memory of their own
        with kept.counted():
            backward(model, batch, tokens)
        assert kept.bytes == 0
        peaks.append(kept.peak)
    assert peaks[1] < 0.6 * peaks[0]
