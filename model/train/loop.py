"""The supervised training loop: stream -> gradient -> judgement -> MuonClip -> checkpoint, resumable to the bit (ours).

One loop serves every pre-training stage and SFT; what differs between them (mixture, row length, rates, which
parameters learn) is in the ``Phase``s that their ``stage.py`` passes in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from model.boundary.errors import MoonflowError
from model.checkpoint.folder import load_training_state, read_state
from model.checkpoint.load import load_weights
from model.checkpoint.saving import AsyncSaver
from model.data.batches.stream import StreamState
from model.network.batch import Batch
from model.network.multimodal import KimiK25
from model.network.yarn import extend_context
from model.parallel.loss import Figures
from model.parallel.ranks import Ranks
from model.train import stop
from model.train.cross_entropy import CrossEntropy
from model.train.engine import TrainingEngine, open_engine
from model.train.guard import ROLLBACKS, SpikeGuard
from model.train.phase import Phase
from model.train.protocol import StepServices
from model.train.stop import Terminated

LOG_EVERY = 10  # steps between logged metrics
LOSS = CrossEntropy()
NAMED_SAMPLES = 12  # of a batch that is not trained on, in the log

log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """What the loop itself saves in a checkpoint; ``step`` counts within ``phase``, ``saved`` counts checkpoints."""

    phase: int = 0
    step: int = 0
    saved: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0


def train(
    model: KimiK25, phases: Sequence[Phase], tokenizer_folder: Path, services: StepServices, ranks: Ranks | None = None
) -> LoopState:
    """Run the phases in order, from this step's newest checkpoint if there is one; the last checkpoint is complete.

    Each phase starts a fresh optimizer. A run that was killed and started again ends with the same weights, bit for
    bit, as one that was not.

    Raises:
        Terminated: it was asked to end (``model.train.stop``); its last step is saved.
        MoonflowError: the loss keeps spiking (``model.train.guard``); what is published stays.
    """
    ranks = ranks or Ranks()
    place = ranks.rank, ranks.world, ranks.expert_share
    with AsyncSaver(services.checkpoints, services.work, tokenizer_folder, *place) as saver:
        return _Run(model, phases, services, saver, ranks).run()


class _Run:
    def __init__(
        self, model: KimiK25, phases: Sequence[Phase], services: StepServices, saver: AsyncSaver, ranks: Ranks
    ) -> None:
        self.model, self.phases = model, phases
        self.services, self.saver, self.ranks = services, saver, ranks
        self.loop = LoopState()
        self.total_steps = sum(phase.steps for phase in phases)

    def run(self) -> LoopState:
        found = self.services.checkpoints.latest()
        if found is not None:
            self.loop = LoopState(**read_state(found)["loop"])
        self.model.to(self.ranks.device).train()
        for number, phase in enumerate(self.phases):
            if number < self.loop.phase:
                continue
            self._phase(number, phase, found)
            found = None
            self.loop.phase, self.loop.step = number + 1, 0
        return self.loop

    def _phase(self, number: int, phase: Phase, found: Path | None) -> None:
        done_before = sum(earlier.steps for earlier in self.phases[:number])
        if phase.window:
            extend_context(self.model, phase.window)
        engine, guard, position = self._open(phase, found)
        with stop.at_step_ends():
            engine = self._steps(number, phase, done_before, engine, guard, position)
            # The request may have come while the phase's last step was saved, after the check at that step's end.
            ends = self.ranks.any(stop.asked()) and done_before + self.loop.step < self.total_steps
        engine.close()
        if ends:
            self._end(done_before)

    def _steps(
        self,
        number: int,
        phase: Phase,
        done_before: int,
        engine: TrainingEngine,
        guard: SpikeGuard,
        position: StreamState | None,
    ) -> TrainingEngine:
        """Take the phase's remaining steps; returns the engine that took the last one."""
        rollbacks, rolled_at = 0, -1
        while self.loop.step < phase.steps:
            begun = time.perf_counter() - self.loop.seconds
            stream = phase.stream(position)
            left = phase.steps - self.loop.step
            for batch, after in stream.batches(left, self.ranks.data_rank, self.ranks.data_ranks):
                tokens = sum(after.tokens.values()) - (sum(position.tokens.values()) if position is not None else 0)
                position = after
                figures = engine.backward(batch.to(self.ranks.device), LOSS)
                verdict = guard.judge(figures)
                if verdict == "train":
                    figures |= engine.update(self.loop.step)
                else:
                    engine.discard()
                    step = done_before + self.loop.step + 1
                    log.warning("step %d is not trained: %s; its samples: %s", step, guard.reason, _samples(batch))
                if verdict == "roll back":
                    rollbacks = rollbacks + 1 if rolled_at == self.loop.saved else 1
                    engine.close()
                    engine, guard = self._roll_back(number, phase, guard.reason, rollbacks)
                    rolled_at = self.loop.saved
                    break  # the data goes on after the batches that led here
                self.loop.step += 1
                self.loop.tokens_seen += tokens
                self.loop.seconds = time.perf_counter() - begun
                self._report(done_before, phase, {**figures, **stream.figures()})
                ends = self.ranks.any(stop.asked()) and done_before + self.loop.step < self.total_steps
                if ends or phase.saves_at(self.loop.step):
                    self._save(done_before, engine, guard, after)
                if ends:
                    self._end(done_before)
        return engine

    def _end(self, done_before: int) -> NoReturn:
        """The process was asked to end: wait until its last step is saved."""
        self.saver.wait()
        log.warning("asked to end: step %d is saved", done_before + self.loop.step)
        raise Terminated

    def _open(self, phase: Phase, found: Path | None) -> tuple[TrainingEngine, SpikeGuard, StreamState | None]:
        """The phase's engine, guard and data position, at the beginning or as in the checkpoint ``found``."""
        if found is not None:  # before the engine is opened: it may divide the weights among the ranks
            load_weights(self.model, found)
        engine = open_engine(self.model, phase.optimization, self.ranks)
        if found is None or self.loop.step == phase.steps:  # it was saved at a phase's end
            return engine, SpikeGuard(), None
        state = load_training_state(found, engine)
        return engine, SpikeGuard(state["guard"]), StreamState(**state["data_position"])

    def _roll_back(self, number: int, phase: Phase, reason: str, rollbacks: int) -> tuple[TrainingEngine, SpikeGuard]:
        """Go back to the newest checkpoint, but not in the data."""
        self.saver.wait()
        found = self.services.checkpoints.latest()
        if found is None or rollbacks > ROLLBACKS:
            tried = (
                f"after {ROLLBACKS} returns to one checkpoint" if found else "and no checkpoint is there to return to"
            )
            raise MoonflowError(
                f"the loss does not come down again ({reason}), {tried}: the log names the samples; lower "
                "learning_rate, or take the samples out and use a new run id"
            )
        self.loop = LoopState(**read_state(found)["loop"])
        log.warning("rolled back to the checkpoint of step %d; the data goes on", self.loop.step)
        if self.loop.phase < number:  # this phase has not saved anything yet
            load_weights(self.model, found)
            self.loop.phase, self.loop.step = number, 0
            return open_engine(self.model, phase.optimization, self.ranks), SpikeGuard()
        engine, guard, _ = self._open(phase, found)
        return engine, guard

    def _report(self, done_before: int, phase: Phase, figures: Figures) -> None:
        done, speed = done_before + self.loop.step, self.loop.tokens_seen / self.loop.seconds
        self.services.progress.update(done, self.total_steps, loss=figures["loss/total"], tokens_per_s=speed)
        if self.loop.step % LOG_EVERY == 0 or self.loop.step == phase.steps:
            self.services.metrics.log({**figures, "tokens/s": speed, "tokens/seen": self.loop.tokens_seen}, done)

    def _save(self, done_before: int, engine: TrainingEngine, guard: SpikeGuard, position: StreamState) -> None:
        self.loop.saved += 1
        self.saver.save(
            self.model.config,
            engine.written_weights(),
            engine.named_state(),
            {"loop": vars(self.loop), "data_position": vars(position), "guard": guard.state()},
            index=self.loop.saved - 1,
            tokens_seen=self.loop.tokens_seen,
            complete=done_before + self.loop.step == self.total_steps,
        )


def _samples(batch: Batch) -> str:
    keys = batch.keys
    more = f" and {len(keys) - NAMED_SAMPLES} more" if len(keys) > NAMED_SAMPLES else ""
    return ", ".join(keys[:NAMED_SAMPLES]) + more
