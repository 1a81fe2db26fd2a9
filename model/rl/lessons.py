"""Fine-tuning data with a policy's own successes, for the step ``rejection_sft`` and for ablations.

Source: K2.5, between visual and joint RL. The share of the successes is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.folder import SUCCESSES
from model.data.batches.folder import DataFolder
from model.data.order.shares import Mixture, with_shares
from model.rl.successes import Kept


@dataclass(frozen=True)
class Lessons:
    """A data folder with the successes as one more family.

    Attributes:
        kept: successes in the checkpoint.
        usable: those that can be read and are not longer than a row.
    """

    data: DataFolder
    kept: int
    usable: int

    @classmethod
    def of(cls, data: DataFolder, checkpoint: Path, tokens_per_row: int) -> Lessons:
        """Raises MoonflowError as ``Kept.of``."""
        kept = Kept.of(checkpoint)
        joined = data.with_family(SUCCESSES, kept.entries, kept.source)
        return cls(joined, len(kept), _fitting(joined, tokens_per_row) if kept.entries else 0)

    @property
    def problem(self) -> str:
        """What is wrong with some of the successes, in one line; "" if nothing is."""
        if self.usable == self.kept:
            return ""
        return f"{self.kept - self.usable} of {self.kept} successes do not fit into a row, or cannot be read"


def with_successes(trajectories: Mixture, share: float) -> Mixture:
    """Shares of the tokens: the successes have ``share``, the trajectories what is left."""
    return with_shares(trajectories, {SUCCESSES: share})


def _fitting(data: DataFolder, tokens_per_row: int) -> int:
    lengths = [data.lengths(entry)[:, 0] for entry in data.entries(SUCCESSES, "train")]
    return sum(int(((tokens > 0) & (tokens <= tokens_per_row)).sum()) for tokens in lengths)
