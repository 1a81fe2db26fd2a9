"""Each family's share of the tokens as a function of progress (source: ours; K2.5 Table 1 compares three schedules).

K2.5 counts vision : text tokens. Here every token of a document with an image or a video counts as vision, its words
included, and every other token as text. The loss figures and the planner follow the same rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal

from model.boundary.errors import MoonflowError
from model.data.order.family_shares import TEXT, VISION
from model.data.order.shares import Mixture, blend

Between = Literal["constant", "linear"]


class Schedule:
    """Shares of tokens from progress 0 to progress 1.

    Args:
        points: (progress, weights) with progress rising from 0.0 and below 1 (1 is allowed for "linear"); each point's
            weights are normalised.
        between: "constant" keeps a point's shares until the next point; "linear" interpolates between the points. The
            last point's shares hold to the end.

    Raises:
        MoonflowError: points out of order, or weights that are negative or all zero.
    """

    def __init__(self, points: Sequence[tuple[float, Mapping[str, float]]], between: Between = "constant") -> None:
        self.starts = [float(progress) for progress, _ in points]
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if not points or self.starts[0] != 0 or not rising or self.starts[-1] > 1:
            raise MoonflowError(f"a schedule's points must rise from 0.0 to at most 1.0, not {self.starts}")
        for progress, weights in points:
            if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
                raise MoonflowError(
                    f"the mixture at progress {progress} has negative weights or none above zero: {dict(weights)}"
                )
        self.between = between
        self.families = sorted({name for _, weights in points for name, weight in weights.items() if weight > 0})
        self._shares = [
            {name: weights.get(name, 0.0) / sum(weights.values()) for name in self.families} for _, weights in points
        ]

    @classmethod
    def constant(cls, weights: Mapping[str, float]) -> Schedule:
        """One mixture from beginning to end."""
        return cls([(0.0, weights)])

    def restricted_to(self, families: Sequence[str]) -> Schedule:
        """The same schedule with these families only; MoonflowError if a point has none of them."""
        points = [{name: shares[name] for name in families} for shares in self._shares]
        return Schedule(list(zip(self.starts, points, strict=True)), self.between)

    @property
    def changes(self) -> bool:
        """Whether the shares depend on progress."""
        return len(self.starts) > 1

    def shares(self, progress: float) -> dict[str, float]:
        """Share of each family at ``progress``; they sum to 1."""
        here = max(0, bisect_right(self.starts, progress) - 1)
        now = self._shares[here]
        if self.between == "constant" or here + 1 == len(self.starts):
            return dict(now)
        then, start, end = self._shares[here + 1], self.starts[here], self.starts[here + 1]
        part = (progress - start) / (end - start)
        return {name: now[name] + part * (then[name] - now[name]) for name in self.families}

    def budget(self, begin: float = 0.0, end: float = 1.0) -> dict[str, float]:
        """Mean share of each family between two moments of progress."""
        borders = sorted({begin, end, *(start for start in self.starts if begin < start < end)})
        total = dict.fromkeys(self.families, 0.0)
        for left, right in zip(borders, borders[1:], strict=False):
            # Shares are constant or linear between two borders, so their value in the middle is the mean.
            for name, share in self.shares((left + right) / 2).items():
                total[name] += share * (right - left) / (end - begin)
        return total


def fusion(
    vision_ratio: float,
    vision_start: float,
    text: Mixture = TEXT,
    vision: Sequence[tuple[float, Mixture]] = ((0.0, VISION),),
) -> Schedule:
    """Text alone for a share ``vision_start`` of the training, then ``vision_ratio`` of the tokens are vision.

    Args:
        vision: mixtures of the vision tokens: (progress, mixture from then on), rising from 0.0.

    Raises:
        MoonflowError: a ratio that is no share, or moments that do not rise from 0.0 to below 1.
    """
    if not 0 <= vision_ratio <= 1:
        raise MoonflowError(f"the share of vision tokens must be in [0, 1], not {vision_ratio}")
    starts = Schedule(vision).starts  # checked to rise
    points = []
    for moment in sorted({vision_start, *starts}):
        share = vision_ratio if moment >= vision_start else 0.0
        mixture = vision[bisect_right(starts, moment) - 1][1]
        points.append((moment, blend((text, 1 - share), (mixture, share))))
    return Schedule(points)
