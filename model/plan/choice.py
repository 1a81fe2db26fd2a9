"""Which layout to choose (source: ours): among those that fit, the one whose ranks send the fewest bytes per token;
among equals the one that recomputes nothing, has the lowest ZeRO stage and the fewest expert-parallel ranks."""

from __future__ import annotations

from dataclasses import dataclass

from model.network.config import ModelConfig
from model.plan.layout import LayoutConstraints, PlannedLayout, Workload, layouts
from model.plan.memory import peak, tokens_of_rank
from model.plan.traffic import traffic

# Share of a GPU's memory that a layout may use. The rest is for the driver, communication buffers, temporary memory of
# operations, and fragmentation.
USABLE = 0.9
GIB = 2**30


@dataclass(frozen=True)
class Option:
    """A layout, its memory and its traffic.

    Attributes:
        bytes: memory of one rank at the peak of a step.
        sent: bytes that one rank sends in a step.
        sent_per_token: the same, divided by the rank's tokens.
        fits: whether ``bytes`` stay within ``USABLE`` of the GPU's memory.
    """

    layout: PlannedLayout
    bytes: float
    sent: float
    sent_per_token: float
    fits: bool


def options(
    config: ModelConfig, gpus: int, work: Workload, gpu_gib: float, constraints: LayoutConstraints
) -> list[Option]:
    """Every layout that divides evenly.

    Raises:
        MoonflowError: a size is out of range, or the constraints do not divide evenly.
    """
    work.check(config)
    constraints.check(config, gpus, work.tokens)
    found = []
    for layout in layouts(config, gpus, work.tokens, constraints):
        held, sent = peak(config, layout, work), traffic(config, layout, work)
        fits = held <= USABLE * gpu_gib * GIB
        found.append(Option(layout, held, sent, sent / tokens_of_rank(layout, work), fits))
    return found


def suggest(found: list[Option]) -> Option | None:
    """The best option that fits; None if none does."""

    def rank(option: Option) -> tuple[float, bool, int, int]:
        layout = option.layout
        return option.sent_per_token, layout.recompute, layout.zero, layout.experts

    return min((option for option in found if option.fits), key=rank, default=None)
