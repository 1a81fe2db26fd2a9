from __future__ import annotations

import pytest

from model.config import preset
from model.errors import MoonflowError
from model.plan.choice import GIB, USABLE, options, suggest
from model.plan.layout import Layout, Wanted, Work
from model.plan.memory import peak, state_figures
from model.plan.parameters import Parameters

K25 = preset("k25")


def test_zero_divides_what_its_stage_says():
    """The ZeRO paper's table, in our precisions: 2 + 4 + (4 + 4) bytes a parameter with Muon, less what is divided."""
    parts, gpus = Parameters(K25), 64

    def states(zero: int, experts: int = 1) -> float:
        return sum(figure.value for figure in state_figures(K25, Layout(gpus, zero, experts, 1, False)))

    every = parts.all.total
    divided = 8 * every + 4 * parts.all.adamw
    assert states(1) == pytest.approx(6 * every + divided / gpus, rel=1e-6)
    assert states(2) == pytest.approx(2 * every + (4 * every + divided) / gpus, rel=1e-6)
    assert states(3) == pytest.approx((6 * every + divided) / gpus, rel=1e-6)
    assert states(1, experts=32) == pytest.approx(
        6 * (parts.dense.total + parts.routed.total / 32) + divided / gpus, rel=1e-6
    )


def test_every_layout_divides_evenly_and_the_suggested_one_fits():
    found = options(K25, 512, Work(), 80, Wanted())
    assert len({option.layout for option in found}) == len(found)
    for option in found:
        layout = option.layout
        assert 512 % layout.experts == 384 % layout.experts == 512 % layout.sequence == 64 % layout.sequence == 0
        assert option.bytes == peak(K25, layout, Work())
        assert option.fits == (option.bytes <= USABLE * 80 * GIB)
    best = suggest(found)
    assert best is not None and best.fits
    assert best.sent_per_token == min(option.sent_per_token for option in found if option.fits)


def test_the_released_shape_fits_no_single_node_and_small_fits_one_gpu():
    assert suggest(options(K25, 8, Work(), 80, Wanted())) is None
    best = suggest(options(preset("small"), 1, Work(4096, 4), 80, Wanted()))
    assert best is not None and best.layout == Layout(1, 1, 1, 1, recompute=False)


def test_more_memory_never_fits_fewer_layouts():
    fits = [sum(o.fits for o in options(K25, 512, Work(), gib, Wanted())) for gib in (40, 80, 141, 10_000)]
    assert fits == sorted(fits) and fits[0] < fits[-1] == len(options(K25, 512, Work(), 80, Wanted()))


@pytest.mark.parametrize(
    ("gpus", "work", "wanted", "named"),
    [
        (0, Work(), Wanted(), "--gpus 0"),
        (8, Work(), Wanted(zero=4), "--zero 4"),
        (8, Work(), Wanted(experts=-1), "--expert-parallel -1"),
        (8, Work(), Wanted(experts=3), "--expert-parallel 3 does not divide the 8 GPUs"),
        (512, Work(), Wanted(experts=256), "--expert-parallel 256 does not divide the 384 routed experts"),
        (512, Work(), Wanted(sequence=128), "--sequence-parallel 128 does not divide the 64 attention heads"),
        (8, Work(tokens=1001), Wanted(sequence=8), "--sequence-parallel 8 does not divide the 1001 tokens"),
        (8, Work(tokens=0), Wanted(), "--sequence 0"),
        (8, Work(sequences=0), Wanted(), "--batch 0"),
        (8, Work(vision_share=1.0), Wanted(), "--vision-share 1.0"),
        (8, Work(patches=6), Wanted(), "--image-patches 6"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_option(gpus, work, wanted, named):
    with pytest.raises(MoonflowError) as raised:
        options(K25, gpus, work, 80, wanted)
    assert named in str(raised.value) and "\n" not in str(raised.value)
