"""Which layout to take (source: ours): of those that fit, the one whose ranks send the fewest bytes per token; of
equals the one that recomputes nothing, has the lowest ZeRO stage and the fewest expert-parallel ranks."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig
from model.plan.layout import Layout, Wanted, Work, layouts
from model.plan.memory import peak, tokens_of_rank
from model.plan.traffic import traffic

# What is left to the driver, to communication buffers, to what an operation holds for itself, and to fragmentation.
USABLE = 0.9
GIB = 2**30


@dataclass(frozen=True)
class Option:
    """A layout with its two sums.

    Attributes:
        bytes: at the peak of a step, of one rank.
        sent: bytes that one rank sends in a step.
        sent_per_token: the same for each of its tokens.
        fits: whether ``bytes`` stay within ``USABLE`` of the GPU's memory.
    """

    layout: Layout
    bytes: float
    sent: float
    sent_per_token: float
    fits: bool


def options(config: ModelConfig, gpus: int, work: Work, gpu_gib: float, wanted: Wanted) -> list[Option]:
    """Every layout that divides evenly.

    Raises:
        MoonflowError: for a size that is none, or a wanted layout that does not divide evenly.
    """
    work.check(config)
    wanted.check(config, gpus, work.tokens)
    found = []
    for layout in layouts(config, gpus, work.tokens, wanted):
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
