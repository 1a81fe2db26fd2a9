"""One phase of supervised training: its data and how the weights follow it (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.data.batches.stream import MixtureStream, StreamState
from model.optimizer.optimization import Optimization


@dataclass(frozen=True)
class Phase:
    """What a stage passes to ``model.train.loop.train``.

    Attributes:
        stream: opens the phase's data at its beginning (None) or at a saved state.
        optimization: the number of steps, rates, precision, and which parameters learn.
        checkpoint_every: steps between saved states; 0 saves only at the end.
        window: context length in positions, to which YaRN extends the model's context when the phase begins
            (``model.network.yarn``); 0 leaves it as it is.
    """

    stream: Callable[[StreamState | None], MixtureStream]
    optimization: Optimization
    checkpoint_every: int = 0
    window: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.optimization.steps

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows once ``step`` steps are done."""
        return step == self.steps or (self.checkpoint_every > 0 and step % self.checkpoint_every == 0)
