"""A batch computed in parts of its rows gives what the whole batch gives; real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data.batches.packing import pack
from model.network.batch import Batch
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products
from model.network.yarn import extend_context
from model.optimizer.optimization import Optimization
from model.parallel import thread_replicas as module
from model.parallel.thread_replicas import ThreadReplicas, balanced, row_costs
from model.train.engine import PlainEngine
from tests.drawn import PAD, sample
from tests.torch_threads import torch_threads
from tests.training import LOSS, add_gradient, batch_loss, gradients, let_learn, take_step
from tests.two_layers import CASES, CONFIG, MIXED, assert_same_gradients, batch_of, largest, loads, make


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """These batches would be too small to split."""
    monkeypatch.setattr(module, "LEAST", 1)


@contextmanager
def replicas_of(model: KimiK25, count: int) -> Iterator[ThreadReplicas]:
    replicas = ThreadReplicas(model, count)
    yield replicas
    replicas.close()


@pytest.mark.usefixtures("float_is_double")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_parts_give_the_gradients_and_figures_of_the_whole_batch(case: str, count: int) -> None:
    whole, divided, batch = make().double(), make().double(), batch_of(case)
    if batch.pixel_values is not None:
        batch = replace(batch, pixel_values=batch.pixel_values.double())
    loss, figures = batch_loss(whole, batch)
    (0.5 * loss).backward()
    with replicas_of(divided, count) as replicas:
        assert len(replicas.split(batch)) == min(count, len(batch.input_ids_BT))
        assert add_gradient(replicas, batch, 0.5) == pytest.approx(figures, rel=1e-12)
    assert_same_gradients(divided, whole)
    assert all(load.sum() > 0 for load in loads(divided))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_steps_of_an_engine_repeat_to_the_bit_and_are_those_of_one_thread(products: str) -> None:
    """Also where a part of the model does not learn, and in the second step, which begins with the first's weights."""

    def steps(threads: int, delays: Callable[[], float] = lambda: 0.0) -> tuple[dict[str, Tensor], list[dict]]:
        with torch_threads(threads):
            model = make()
            engine = PlainEngine(model, settings(products=products))
            assert engine.replicas.count == threads
            for one in model.vision_tower.encoder.blocks:
                one.register_forward_hook(lambda *_: time.sleep(delays()))
            figures = [take_step(engine, batch_of(case)) for case in ("media in some rows", "text", "one row")]
            engine.close()
            assert torch.get_num_threads() == threads
        return model.state_dict(), figures

    first, figures = steps(3)
    again, same = steps(3, lambda: 0.02 if threading.current_thread() is threading.main_thread() else 0.0)
    other, also = steps(3, lambda: 0.0 if threading.current_thread() is threading.main_thread() else 0.02)
    assert figures == same == also
    assert all(torch.equal(value, again[name]) and torch.equal(value, other[name]) for name, value in first.items())
    _, alone = steps(1)
    for one, two in zip(figures, alone, strict=True):
        assert one == pytest.approx(two, rel=1e-3 if products == "float32" else 2e-2)


def settings(**others: Any) -> Optimization:
    return Optimization(10, 1e-3, **others)


def test_one_thread_computes_as_without_replicas() -> None:
    whole, model, batch = make(), make(), batch_of("media in some rows")
    loss, figures = batch_loss(whole, batch)
    loss.backward()
    with torch_threads(1):
        engine = PlainEngine(model, settings())
        found = engine.backward(batch, LOSS)
    assert {name: found[name] for name in figures} == figures
    wanted, got = gradients(whole), gradients(model)
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[name], value) for name, value in got.items())


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_the_largest_logit_of_all_parts_is_kept(noise: float) -> None:
    """Bounds of rows are no larger than those of all rows; above the threshold, logits are exact either way."""
    whole, divided, batch = make(noise), make(noise), batch_of("media in some rows")
    batch_loss(whole, batch)
    with replicas_of(divided, 3) as replicas:
        alone = []
        for part in replicas.split(batch):
            batch_loss(divided, part)
            alone.append(largest(divided))
        add_gradient(replicas, batch)
    threshold = next(whole.attentions()).clip_threshold
    assert ((largest(whole) > threshold).any()) == (noise == 0.5)
    assert torch.equal(largest(divided), torch.stack(alone).amax(0))
    assert len({int(one.argmax()) for one in torch.stack(alone).flatten(1).T}) > 1
    above = largest(whole) > threshold
    assert torch.equal(largest(divided) > threshold, above)
    torch.testing.assert_close(largest(divided)[above], largest(whole)[above])
    assert (largest(divided) <= largest(whole) * (1 + 1e-5)).all()


def test_gradients_of_several_batches_add_up_and_loads_too() -> None:
    model, batches = make(), [batch_of("text"), batch_of("media in some rows")]
    with replicas_of(model, 2) as replicas:
        alone = []
        for batch in batches:
            add_gradient(replicas, batch)
            alone.append((gradients(model), loads(model)))
            model.zero_grad()
            for router in model.routers():
                router.load_E.zero_()
        for batch in batches:
            add_gradient(replicas, batch)
    (text, text_loads), (mixed, mixed_loads) = alone
    assert text.keys() < mixed.keys()
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, mixed[name] + text.get(name, 0.0), rtol=1e-4, atol=1e-6)
    for load, one, other in zip(loads(model), text_loads, mixed_loads, strict=True):
        assert torch.equal(load, one + other)


def test_replicas_made_while_nothing_is_learned_learn_later() -> None:
    @torch.inference_mode()  # holds for the thread that calls it
    def reading(model: KimiK25, part: Batch) -> Tensor:
        return model.eval()(part)

    read, fresh, batch = make(), make(), batch_of("text")
    with replicas_of(read, 2) as after, replicas_of(fresh, 2) as at_once:
        with torch.inference_mode():
            after.run(reading, after.split(batch))
        read.train()
        add_gradient(after, batch)
        add_gradient(at_once, batch)
    for got, expected in zip(gradients(read).values(), gradients(fresh).values(), strict=True):
        assert torch.equal(got, expected)


def test_rows_without_an_image_add_nothing_where_vision_alone_learns() -> None:
    model, batch = let_learn(make(), "vision_tower"), batch_of("media in some rows")
    with replicas_of(model, 5) as replicas:
        assert any(part.pixel_values is None for part in replicas.split(batch))
        add_gradient(replicas, batch)
    found = gradients(model)
    model.zero_grad()
    batch_loss(model, batch)[0].backward()
    assert found.keys() == gradients(model).keys() != set()
    for name, value in gradients(model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("failing", [{0}, {1}, {2}, {0, 2}, {1, 2}])
def test_an_error_is_raised_when_no_part_runs_any_more(failing: set[int]) -> None:
    model, batch = make(), batch_of("media in some rows")
    ended = []

    def work(model: KimiK25, number: int) -> None:
        if number in failing:
            raise ArithmeticError(f"part {number}")
        time.sleep(0.1)
        batch_loss(model, batch)[0].backward()
        ended.append(number)

    with replicas_of(model, 3) as replicas:
        add_gradient(replicas, batch)
        wanted, threads = gradients(model), torch.get_num_threads()
        with pytest.raises(ArithmeticError, match=f"part {min(failing)}"):
            replicas.run(work, [0, 1, 2])
        assert set(ended) == {0, 1, 2} - failing
        assert torch.get_num_threads() == threads
        model.zero_grad()
        for router in model.routers():
            router.load_E.zero_()
        add_gradient(replicas, batch)  # what the failure left is gone
    assert all(torch.equal(wanted[name], value) for name, value in gradients(model).items())
    assert loads(model)[0].sum() == batch.input_ids_BT.numel() * CONFIG.text_config.num_experts_per_tok


def test_replicas_follow_the_model() -> None:
    """Weights that are copied into it, moved elsewhere, learn no more; a longer context; evaluation."""
    model, batch = make(), batch_of("text")

    def check(replicas: ThreadReplicas) -> None:
        model.zero_grad()
        whole, _ = batch_loss(model, batch)
        whole.backward()
        wanted = gradients(model)
        model.zero_grad()
        add_gradient(replicas, batch)
        assert gradients(model).keys() == wanted.keys()
        for name, value in gradients(model).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-6)

    with replicas_of(model, 2) as replicas:
        check(replicas)
        model.load_state_dict(make(0.1).state_dict())
        check(replicas)
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(0.1 * torch.randn(head.weight.shape))
        check(replicas)
        model.language_model.model.embed_tokens.weight.requires_grad_(False)
        check(replicas)
        extend_context(model, 4 * CONFIG.text_config.max_position_embeddings)
        check(replicas)
        for training in (False, True):
            model.train(training)
            assert replicas.run(lambda model, _: model.training, [0, 1]) == [training, training]


def test_what_holds_for_the_caller_holds_in_all_threads_and_threads_end() -> None:
    model = make()
    before = threading.active_count()
    engine: PlainEngine
    with torch_threads(3):
        engine = PlainEngine(model, settings(products="bfloat16", expert_precision="int4"))
    seen: set[tuple[str, torch.dtype | None, int]] = set()

    def look(_: object, given: tuple[object, ...]) -> None:
        context = given[-1]
        assert isinstance(context, ForwardContext) and context.expert_precision == "int4"
        seen.add((threading.current_thread().name, context.products, torch.get_num_threads()))

    model.language_model.model.register_forward_pre_hook(look)
    names = set(model.state_dict())
    engine.backward(batch_of("media in some rows"), LOSS)
    assert {(dtype, threads) for _, dtype, threads in seen} == {(narrow_products(torch.device("cpu")), 1)}
    assert len({name for name, _, _ in seen}) == 3
    assert set(model.state_dict()) == names
    engine.close()
    assert threading.active_count() == before


def test_a_single_row_keeps_all_threads_and_two_rows_divide_them() -> None:
    model = make()
    with torch_threads(4), replicas_of(model, 4) as replicas:
        assert replicas.run(lambda *_: torch.get_num_threads(), [0]) == [4]
        assert replicas.run(lambda *_: torch.get_num_threads(), [0, 1]) == [2, 2]
        assert replicas.run(lambda *_: torch.get_num_threads(), [0, 1, 2]) == [1, 1, 1]


def test_parts_are_of_equal_cost_as_far_as_rows_allow() -> None:
    assert balanced([1.0] * 16, 2) == [0, 8, 16]
    assert balanced([1.0] * 7, 3) == [0, 2, 5, 7]
    assert balanced([1.0, 1.0], 4) == [0, 1, 2]
    assert balanced([5.0], 2) == [0, 1]
    assert balanced([9.0, 1.0, 1.0, 1.0], 3) == [0, 1, 2, 4]
    assert balanced([1.0, 1.0, 1.0, 9.0], 3) == [0, 2, 3, 4]
    images = [sample(40 + number, 5, (1, 12, 12), 5) for number in range(2)]
    batch = pack([*images, *(sample(50 + number, 41) for number in range(8))], CONFIG.pad_token_id)
    costs = row_costs(batch, make())
    with_images = [row for row, ids in enumerate(batch.input_ids_BT) if (ids == PAD).any()]
    plain = {cost for row, cost in enumerate(costs) if row not in with_images}
    assert len(plain) == 1 and min(costs[row] for row in with_images) > 1.5 * plain.pop()


def test_a_batch_too_small_to_split_is_one_part_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = pack(MIXED, 0), new_model(CONFIG, 0)
    work = sum(row_costs(batch, model))
    with torch_threads(3), replicas_of(model, 3) as replicas:
        for least, parts, used in ((work, 1, 1), (work / 2, 2, 1), (work / 3, 3, 1), (work / 9, 3, 1)):
            monkeypatch.setattr(module, "LEAST", least * 0.999)
            cut = replicas.split(batch)
            assert len(cut) == parts and replicas.run(lambda *_: torch.get_num_threads(), cut) == [used] * parts
        assert torch.get_num_threads() == 3
