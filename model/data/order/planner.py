"""Which sample goes where in every batch, planned from lengths alone (source: ours).

The plan of a batch is a pure function of the shards' lengths, the schedule, the seed and the integers in
``StreamState``: every rank makes the same plan and reads only its own rows, and a resumed run continues the plan, on
any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model.boundary.errors import MoonflowError
from model.data.order.family_order import FamilyShards
from model.data.order.schedule import Schedule

LOOKAHEAD = 16  # samples of a family to choose from; rows of 256 of the joint mixture are then 0.989 full (measured)
LEAD = 64  # tokens that a family may be ahead of its share so as to fill the end of a row


@dataclass(frozen=True)
class StreamState:
    """The position of a stream; JSON-able through ``vars``.

    Attributes:
        batches: made so far.
        taken: family -> the position after the last sample that was taken.
        passed: family -> earlier positions whose samples still wait for room.
        tokens: family -> tokens that were placed.
        vision: how many of all placed tokens are in documents with an image or a video.
        skipped: samples that were left out: longer than a row, or unreadable when they were measured.
    """

    batches: int
    taken: dict[str, int]
    passed: dict[str, list[int]]
    tokens: dict[str, int]
    vision: int
    skipped: int


@dataclass(frozen=True)
class PlannedSample:
    """A sample in the plan: its family and position in the family's order, its first column and its tokens."""

    family: str
    position: int
    start: int
    tokens: int


class Queue:
    """The next samples of one family that fit into a row, in the family's order."""

    def __init__(self, family: FamilyShards, tokens_per_row: int, taken: int, passed: list[int]) -> None:
        self.family, self.tokens_per_row = family, tokens_per_row
        self.taken, self._reach = taken, taken
        self.ahead: list[tuple[int, int, bool]] = []  # position, tokens, vision
        self.longest = 0  # tokens of the longest of them
        for position in passed:
            self.ahead.append((position, *family.tokens(position)))
        self._refill()

    @property
    def passed(self) -> list[int]:
        """As in ``StreamState``."""
        return [position for position, _, _ in self.ahead if position < self.taken]

    def fits(self, tokens: int) -> bool:
        """Whether a sample of so many tokens is readable (not 0) and no longer than a row."""
        return 0 < tokens <= self.tokens_per_row

    def take(self, number: int) -> tuple[int, int, bool, int]:
        """Remove ``ahead[number]``: its position, tokens and vision, and how many unfit samples were skipped."""
        position, tokens, vision = self.ahead.pop(number)
        unfit = sum(not self.fits(self.family.tokens(p)[0]) for p in range(self.taken, position))
        self.taken = max(self.taken, position + 1)
        self._refill()
        return position, tokens, vision, unfit

    def _refill(self) -> None:
        while len(self.ahead) < LOOKAHEAD:
            tokens, vision = self.family.tokens(self._reach)
            if self.fits(tokens):
                self.ahead.append((self._reach, tokens, vision))
            self._reach += 1
        self.longest = max(tokens for _, tokens, _ in self.ahead)


class Planner:
    """Plans batches one after another.

    A row is filled sample by sample. First comes the modality whose share lacks the most tokens, within it the family
    whose share lacks the most, and of its samples the oldest that fits. Once a single sample could fill the rest of the
    row, the longest sample that fits is taken, from families and modalities that are at most ``LEAD`` tokens ahead of
    their shares. A sample that finds no room stays the first of its family. So rows are full, shares hold at every
    moment, and no sample waits for long.

    A family's share at any moment is the mean of the schedule up to then, times all tokens placed. At the end of a run
    of ``steps`` batches it is therefore the schedule's budget, however full the rows were.

    Args:
        families: name -> its shards with their lengths.
        schedule: of their shares.
        tokens_per_row, rows: of a global batch.
        steps: batches of the whole run; 0 for a schedule that does not change.
        state: where to continue; None for the beginning.

    Raises:
        MoonflowError: no sample of any family fits into a row.
    """

    def __init__(
        self,
        families: Mapping[str, FamilyShards],
        schedule: Schedule,
        *,
        tokens_per_row: int,
        rows: int,
        steps: int,
        state: StreamState | None,
    ) -> None:
        fitting = [name for name in schedule.families if _fits(families[name], tokens_per_row)]
        if not fitting:
            raise MoonflowError(
                f"no sample of {', '.join(schedule.families)} fits into a row of {tokens_per_row} tokens; "
                "raise tokens_per_row"
            )
        self.schedule = schedule.restricted_to(fitting)
        self.left_out = sorted(set(schedule.families) - set(fitting))
        self.tokens_per_row, self.rows, self.steps = tokens_per_row, rows, steps
        start = state or StreamState(0, {}, {}, {}, 0, 0)
        self.made, self.vision, self.skipped = start.batches, start.vision, start.skipped
        self.tokens = {name: start.tokens.get(name, 0) for name in fitting}
        self._vision = {name: _is_vision(families[name]) for name in fitting}
        self.queues = {
            name: Queue(families[name], tokens_per_row, start.taken.get(name, 0), start.passed.get(name, []))
            for name in fitting
        }

    def state(self) -> StreamState:
        """The state after the last planned batch."""
        taken = {name: queue.taken for name, queue in self.queues.items()}
        passed = {name: queue.passed for name, queue in self.queues.items() if queue.passed}
        return StreamState(self.made, taken, passed, dict(self.tokens), self.vision, self.skipped)

    def next(self) -> list[list[PlannedSample]]:
        """The rows of the next global batch."""
        share = _Shares(self.schedule, self.made, self.steps)
        rows = []
        for number in range(self.rows):
            row: list[PlannedSample] = []
            start = 0
            while (choice := self._choose(share, number, start)) is not None:
                name, waiting = choice
                position, tokens, vision, unfit = self.queues[name].take(waiting)
                row.append(PlannedSample(name, position, start, tokens))
                start += tokens
                self.tokens[name] += tokens
                self.vision += tokens if vision else 0
                self.skipped += unfit
            rows.append(row)
        self.made += 1
        return rows

    def _choose(self, share: _Shares, row: int, start: int) -> tuple[str, int] | None:
        """(family, number in its queue) of the next sample of a row filled up to ``start``; None if the row is done."""
        room = self.tokens_per_row - start
        placed = sum(self.tokens.values())
        due = share.at((row + start / self.tokens_per_row) / self.rows)
        needs = {name: placed * due[name] - self.tokens[name] for name in share.active}
        lacking = {
            kind: sum(need for name, need in needs.items() if self._vision[name] == kind) for kind in (True, False)
        }
        if room > self.tokens_per_row // 2 or room > max(self.queues[name].longest for name in needs):
            for name in sorted(needs, key=lambda name: (-lacking[self._vision[name]], -needs[name], -due[name], name)):
                for number, (_, tokens, _) in enumerate(self.queues[name].ahead):
                    if tokens <= room:
                        return name, number
            return None
        best: tuple[int, float] = (0, 0.0)
        choice = None
        for name, need in needs.items():
            if min(need, lacking[self._vision[name]]) < -LEAD:
                continue
            for number, (_, tokens, _) in enumerate(self.queues[name].ahead):
                if tokens <= room and (tokens, need) > best:
                    best, choice = (tokens, need), (name, number)
        return choice


class _Shares:
    """The mean share of each family from the beginning of the run to a moment within batch ``number``."""

    def __init__(self, schedule: Schedule, number: int, steps: int) -> None:
        self.steps, self.number = steps, number
        begin, end = (number / steps, (number + 1) / steps) if steps else (0.0, 1.0)
        self._now = schedule.budget(begin, end)
        self._before = schedule.budget(0.0, begin) if begin else dict.fromkeys(self._now, 0.0)
        self.active = [name for name, share in self._now.items() if share > 0]

    def at(self, part: float) -> dict[str, float]:
        """The shares up to the moment when ``part`` of the batch, from 0 to 1, is filled."""
        if not self.steps or not self.number:
            return self._now
        whole = self.number + part
        return {name: (self.number * self._before[name] + part * now) / whole for name, now in self._now.items()}


def _fits(family: FamilyShards, tokens_per_row: int) -> bool:
    return any(np.any((values[:, 0] > 0) & (values[:, 0] <= tokens_per_row)) for values in family.lengths)


def _is_vision(family: FamilyShards) -> bool:
    """Whether most of the family's tokens belong to documents with an image or a video."""
    tokens = np.concatenate([values[:, 0] for values in family.lengths])
    media = np.concatenate([values[:, 1] for values in family.lengths])
    return bool(2 * tokens[media > 0].sum() >= tokens.sum())
