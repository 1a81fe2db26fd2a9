from __future__ import annotations

import pytest

from model.boundary.errors import MoonflowError
from model.network.config import preset
from model.plan.choice import GIB, USABLE, options, suggest
from model.plan.layout import LayoutConstraints, PlannedLayout, Workload
from model.plan.memory import peak, state_figures
from model.plan.parameters import Parameters

K25 = preset("k25")


def test_zero_divides_what_its_stage_says():
    """The ZeRO paper's table, in our precisions: 2 + 4 + (4 + 4) bytes a parameter with Muon, less what is divided."""
    parts, gpus = Parameters(K25), 64

    def states(zero: int, experts: int = 1) -> float:
        return sum(figure.value for figure in state_figures(K25, PlannedLayout(gpus, zero, experts, 1, False)))

    every = parts.all.total
    divided = 8 * every + 4 * parts.all.adamw
    assert states(1) == pytest.approx(6 * every + divided / gpus, rel=1e-6)
    assert states(2) == pytest.approx(2 * every + (4 * every + divided) / gpus, rel=1e-6)
    assert states(3) == pytest.approx((6 * every + divided) / gpus, rel=1e-6)
    assert states(1, experts=32) == pytest.approx(
        6 * (parts.dense.total + parts.routed.total / 32) + divided / gpus, rel=1e-6
    )


def test_every_layout_divides_evenly_and_the_suggested_one_fits():
    found = options(K25, 512, Workload(), 80, LayoutConstraints())
    assert len({option.layout for option in found}) == len(found)
    for option in found:
        layout = option.layout
        assert 512 % layout.experts == 384 % layout.experts == 512 % layout.sequence == 64 % layout.sequence == 0
        assert option.bytes == peak(K25, layout, Workload())
        assert option.fits == (option.bytes <= USABLE * 80 * GIB)
    best = suggest(found)
    assert best is not None and best.fits
    assert best.sent_per_token == min(option.sent_per_token for option in found if option.fits)


def test_the_released_shape_fits_no_single_node_and_small_fits_one_gpu():
    assert suggest(options(K25, 8, Workload(), 80, LayoutConstraints())) is None
    best = suggest(options(preset("small"), 1, Workload(4096, 4), 80, LayoutConstraints()))
    assert best is not None and best.layout == PlannedLayout(1, 1, 1, 1, recompute=False)


def test_more_memory_never_fits_fewer_layouts():
    fits = [
        sum(o.fits for o in options(K25, 512, Workload(), gib, LayoutConstraints())) for gib in (40, 80, 141, 10_000)
    ]
    assert fits == sorted(fits) and fits[0] < fits[-1] == len(options(K25, 512, Workload(), 80, LayoutConstraints()))


@pytest.mark.parametrize(
    ("gpus", "work", "wanted", "named"),
    [
        (0, Workload(), LayoutConstraints(), "--gpus 0"),
        (8, Workload(), LayoutConstraints(zero=4), "--zero 4"),
        (8, Workload(), LayoutConstraints(experts=-1), "--expert-parallel -1"),
        (8, Workload(), LayoutConstraints(experts=3), "--expert-parallel 3 does not divide the 8 GPUs"),
        (
            512,
            Workload(),
            LayoutConstraints(experts=256),
            "--expert-parallel 256 does not divide the 384 routed experts",
        ),
        (
            512,
            Workload(),
            LayoutConstraints(sequence=128),
            "--sequence-parallel 128 does not divide the 64 attention heads",
        ),
        (
            8,
            Workload(tokens=1001),
            LayoutConstraints(sequence=8),
            "--sequence-parallel 8 does not divide the 1001 tokens",
        ),
        (8, Workload(tokens=0), LayoutConstraints(), "--sequence 0"),
        (8, Workload(sequences=0), LayoutConstraints(), "--batch 0"),
        (8, Workload(vision_share=1.0), LayoutConstraints(), "--vision-share 1.0"),
        (8, Workload(patches=6), LayoutConstraints(), "--image-patches 6"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_option(gpus, work, wanted, named):
    with pytest.raises(MoonflowError) as raised:
        options(K25, gpus, work, 80, wanted)
    assert named in str(raised.value) and "\n" not in str(raised.value)
