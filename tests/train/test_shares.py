"""A batch taken by shares of its rows gives what the whole batch gives; real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import preset
from model.context import extend_context
from model.data.packing import Batch, pack
from model.data.stream import MixtureStream, StreamState
from model.data.tokenize import TokenizedSample
from model.multimodal import KimiK25
from model.precision import product_dtype
from model.train import shares as module
from model.train.engine import PlainEngine, add_gradient, batch_loss
from model.train.phase import Phase
from model.train.shares import RowShares, balanced, row_costs
from model.vision import GridTHW

CONFIG = preset("tiny").model_copy(deep=True)
CONFIG.text_config.num_hidden_layers = 2
PAD = CONFIG.media_placeholder_token_id
WIDTH = 40


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """These batches would be too small to share."""
    monkeypatch.setattr(module, "LEAST", 1)


def sample(seed: int, *parts: int | GridTHW, trained: bool = True) -> TokenizedSample:
    """Random text of the lengths given and random media of the grids given, in order."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 768, (part,), generator=draw) if isinstance(part, int)
           else torch.full((part[1] * part[2] // 4,), PAD) for part in parts]  # fmt: skip
    grids = [part for part in parts if not isinstance(part, int)]
    pixels = torch.rand(sum(t * h * w for t, h, w in grids), 3, 14, 14, generator=draw) if grids else None
    input_ids = torch.cat(ids)
    return TokenizedSample(input_ids, (input_ids != PAD) & trained, pixels, grids)


MIXED = [
    sample(0, 9, (1, 4, 6), 15),
    sample(1, 26),
    sample(2, 5, (4, 4, 4), 8, (1, 2, 2), 15),
    sample(3, 38),
    sample(4, 12),
    sample(5, 4, (1, 4, 4), 5),
    sample(6, 30),
    sample(7, 6),
]  # 5 rows, three of them with media
CASES: dict[str, list[TokenizedSample]] = {
    "media in some rows": MIXED,
    "text": [sample(10 + number, 25 + number) for number in range(7)],
    "rows without a target": [sample(20, 30), sample(21, 31), sample(22, 32, trained=False), sample(23, 33)],
    "one row": [sample(30, 20, (1, 4, 4), 10)],
}


def batch_of(case: str) -> Batch:
    return pack(CASES[case], CONFIG.pad_token_id, tokens_per_row=WIDTH)


def make(noise: float = 0.05) -> KimiK25:
    """The same model each time; initial weights have experts at zero."""
    model, draw = KimiK25(CONFIG), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=draw)
    return learning(model.train())


def learning(model: KimiK25, part: str = "") -> KimiK25:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name and "e_score_correction_bias" not in name)
    return model


def gradients(model: KimiK25) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loads(model: KimiK25) -> list[Tensor]:
    return [router.load_E.clone() for router in model.routers()]


def largest(model: KimiK25) -> Tensor:
    return torch.stack([one.max_logit_h for one in model.attentions() if one.max_logit_h is not None])


@contextmanager
def shares_of(model: KimiK25, count: int) -> Iterator[RowShares]:
    shares = RowShares(model, count)
    yield shares
    shares.close()


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is float32 whatever the weights are becomes float64: what differs then is no rounding."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_shares_give_the_gradients_and_figures_of_the_whole_batch(case: str, count: int) -> None:
    whole, divided, batch = make().double(), make().double(), batch_of(case)
    if batch.pixel_values is not None:
        batch = replace(batch, pixel_values=batch.pixel_values.double())
    loss, figures = batch_loss(whole, batch)
    (0.5 * loss).backward()
    with shares_of(divided, count) as shares:
        assert len(shares.cut(batch)) == min(count, len(batch.input_ids_BT))
        assert add_gradient(shares, batch, 0.5) == pytest.approx(figures, rel=1e-12)
    wanted, found = gradients(whole), gradients(divided)
    assert wanted.keys() == found.keys() and len(wanted) > 20
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 1e-12 * float(value.norm()), name
    assert all(torch.equal(*pair) for pair in zip(loads(divided), loads(whole), strict=True))
    assert all(load.sum() > 0 for load in loads(divided))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_steps_of_an_engine_repeat_to_the_bit_and_are_those_of_one_thread(products: str) -> None:
    """Also where a part of the model does not learn, and in the second step, which begins with the first's weights."""

    def steps(threads: int, delays: Callable[[], float] = lambda: 0.0) -> tuple[dict[str, Tensor], list[dict]]:
        with torch_threads(threads):
            model = make()
            engine = PlainEngine(model, phase(products=products))
            assert engine.shares.count == threads
            for one in model.vision_tower.encoder.blocks:
                one.register_forward_hook(lambda *_: time.sleep(delays()))
            figures = [engine.step(batch_of(case), 0) for case in ("media in some rows", "text", "one row")]
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


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def phase(**settings: str) -> Phase:
    return Phase(no_stream, 10, 1e-3, **settings)  # type: ignore[arg-type]


def no_stream(_: StreamState | None) -> MixtureStream:
    raise AssertionError("batches are given here")


def test_one_thread_computes_as_without_shares() -> None:
    whole, model, batch = make(), make(), batch_of("media in some rows")
    loss, figures = batch_loss(whole, batch)
    loss.backward()
    with torch_threads(1):
        engine = PlainEngine(model, phase())
        found = engine.backward(batch)
    assert {name: found[name] for name in figures} == figures
    wanted, got = gradients(whole), gradients(model)
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[name], value) for name, value in got.items())


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_the_largest_logit_of_all_shares_is_kept(noise: float) -> None:
    """Bounds of rows are no larger than those of all rows; above the threshold, logits are exact either way."""
    whole, divided, batch = make(noise), make(noise), batch_of("media in some rows")
    batch_loss(whole, batch)
    with shares_of(divided, 3) as shares:
        alone = []
        for part in shares.cut(batch):
            batch_loss(divided, part)
            alone.append(largest(divided))
        add_gradient(shares, batch)
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
    with shares_of(model, 2) as shares:
        alone = []
        for batch in batches:
            add_gradient(shares, batch)
            alone.append((gradients(model), loads(model)))
            model.zero_grad()
            for router in model.routers():
                router.load_E.zero_()
        for batch in batches:
            add_gradient(shares, batch)
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
    with shares_of(read, 2) as after, shares_of(fresh, 2) as at_once:
        with torch.inference_mode():
            after.run(reading, after.cut(batch))
        read.train()
        add_gradient(after, batch)
        add_gradient(at_once, batch)
    for got, expected in zip(gradients(read).values(), gradients(fresh).values(), strict=True):
        assert torch.equal(got, expected)


def test_rows_without_an_image_add_nothing_where_vision_alone_learns() -> None:
    model, batch = learning(make(), "vision_tower"), batch_of("media in some rows")
    with shares_of(model, 5) as shares:
        assert any(part.pixel_values is None for part in shares.cut(batch))
        add_gradient(shares, batch)
    found = gradients(model)
    model.zero_grad()
    batch_loss(model, batch)[0].backward()
    assert found.keys() == gradients(model).keys() != set()
    for name, value in gradients(model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("failing", [{0}, {1}, {2}, {0, 2}, {1, 2}])
def test_a_share_that_fails_is_told_when_no_share_runs_any_more(failing: set[int]) -> None:
    model, batch = make(), batch_of("media in some rows")
    ended = []

    def work(model: KimiK25, number: int) -> None:
        if number in failing:
            raise ArithmeticError(f"share {number}")
        time.sleep(0.1)
        batch_loss(model, batch)[0].backward()
        ended.append(number)

    with shares_of(model, 3) as shares:
        add_gradient(shares, batch)
        wanted, threads = gradients(model), torch.get_num_threads()
        with pytest.raises(ArithmeticError, match=f"share {min(failing)}"):
            shares.run(work, [0, 1, 2])
        assert set(ended) == {0, 1, 2} - failing
        assert torch.get_num_threads() == threads
        model.zero_grad()
        for router in model.routers():
            router.load_E.zero_()
        add_gradient(shares, batch)  # what the failure left is gone
    assert all(torch.equal(wanted[name], value) for name, value in gradients(model).items())
    assert loads(model)[0].sum() == batch.input_ids_BT.numel() * CONFIG.text_config.num_experts_per_tok


def test_replicas_follow_the_model() -> None:
    """Weights that are copied into it, moved elsewhere, learn no more; a longer context; evaluation."""
    model, batch = make(), batch_of("text")

    def check(shares: RowShares) -> None:
        model.zero_grad()
        whole, _ = batch_loss(model, batch)
        whole.backward()
        wanted = gradients(model)
        model.zero_grad()
        add_gradient(shares, batch)
        assert gradients(model).keys() == wanted.keys()
        for name, value in gradients(model).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-6)

    with shares_of(model, 2) as shares:
        check(shares)
        model.load_state_dict(make(0.1).state_dict())
        check(shares)
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(0.1 * torch.randn(head.weight.shape))
        check(shares)
        model.language_model.model.embed_tokens.weight.requires_grad_(False)
        check(shares)
        extend_context(model, 4 * CONFIG.text_config.max_position_embeddings)
        check(shares)
        for training in (False, True):
            model.train(training)
            assert shares.run(lambda model, _: model.training, [0, 1]) == [training, training]


def test_what_holds_for_the_caller_holds_in_the_shares_and_threads_end() -> None:
    model = make()
    before = threading.active_count()
    engine: PlainEngine
    with torch_threads(3):
        engine = PlainEngine(model, phase(products="bfloat16", expert_precision="int4"))
    seen: set[tuple[str, torch.dtype | None, int]] = set()

    def look(*_: object) -> None:
        seen.add((threading.current_thread().name, product_dtype(), torch.get_num_threads()))

    model.language_model.register_forward_pre_hook(look)
    model.language_model.model.register_forward_pre_hook(look)
    names = set(model.state_dict())
    engine.backward(batch_of("media in some rows"))
    assert {(dtype, threads) for _, dtype, threads in seen} == {(torch.bfloat16, 1)}
    assert len({name for name, _, _ in seen}) == 3
    assert set(model.state_dict()) == names
    engine.close()
    assert threading.active_count() == before


def test_a_single_row_keeps_all_threads_and_two_rows_divide_them() -> None:
    model = make()
    with torch_threads(4), shares_of(model, 4) as shares:
        assert shares.run(lambda *_: torch.get_num_threads(), [0]) == [4]
        assert shares.run(lambda *_: torch.get_num_threads(), [0, 1]) == [2, 2]
        assert shares.run(lambda *_: torch.get_num_threads(), [0, 1, 2]) == [1, 1, 1]


def test_shares_are_of_equal_cost_as_far_as_rows_allow() -> None:
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


def test_a_batch_too_small_to_share_is_one_part_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = pack(MIXED, 0), KimiK25(CONFIG, 0)
    work = sum(row_costs(batch, model))
    shares, threads = RowShares(model, 3), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for least, parts, used in ((work, 1, 1), (work / 2, 2, 1), (work / 3, 3, 1), (work / 9, 3, 1)):
            monkeypatch.setattr(module, "LEAST", least * 0.999)
            cut = shares.cut(batch)
            assert len(cut) == parts and shares.run(lambda *_: torch.get_num_threads(), cut) == [used] * parts
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
        shares.close()
