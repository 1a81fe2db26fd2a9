from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import WEIGHTS
from model.data.batches.stream import StreamState
from model.network.batch import Batch
from model.optimizer.optimization import Optimization
from model.train.guard import ENOUGH, KNOWN, PATIENCE, ROLLBACKS, SIGMAS, WINDOW, SpikeGuard
from model.train.phase import Phase
from tests.step_services import FolderServices, Killed
from tests.training import train_tiny


def figures(text: float, **more: float) -> dict[str, float]:
    counts = {"targets/text": 500.0, "targets/vision": 500.0}
    return {"loss/text": text, "loss/total": text, "gradient_norm": 1.0, **counts, **more}


def noisy(guard: SpikeGuard, steps: int, level: float = 2.0) -> None:
    for step in range(steps):
        assert guard.judge(figures(level + 0.1 * math.sin(step))) == "train"


def test_a_loss_far_above_the_recent_ones_is_skipped_and_forgotten() -> None:
    guard = SpikeGuard()
    noisy(guard, WINDOW)
    before = guard.state()["recent"]
    assert guard.judge(figures(2.0 + 0.1 * SIGMAS + 0.2)) == "skip"
    assert "loss/text is 3.2 nats, after 2 +- 0.07" in guard.reason
    assert guard.state()["recent"] == before
    assert guard.judge(figures(2.1)) == "train"


def test_nothing_is_a_spike_before_enough_is_known() -> None:
    guard = SpikeGuard()
    noisy(guard, KNOWN - 1)
    assert guard.judge(figures(50.0)) == "train"


def test_heavy_tails_are_no_spikes() -> None:
    """A loss 20 standard deviations above the mean, and yet not far above what came before."""
    guard = SpikeGuard()
    noisy(guard, 40)
    assert guard.judge(figures(2.65)) == "train"
    noisy(guard, 40)
    assert guard.judge(figures(3.2)) == "train"


def test_the_loss_of_a_few_tokens_is_no_spike_and_no_measure() -> None:
    guard = SpikeGuard()
    noisy(guard, WINDOW)
    before = guard.state()
    assert guard.judge(figures(9.0, **{"targets/text": ENOUGH - 1.0})) == "train"
    assert guard.state() == before


def test_the_first_images_are_no_spike() -> None:
    guard = SpikeGuard()
    noisy(guard, 100)
    assert guard.judge(figures(2.0, **{"loss/vision": 9.0})) == "train"


@pytest.mark.parametrize("name", ["loss/total", "loss/text", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_never_trained_on(name: str, value: float) -> None:
    guard = SpikeGuard()
    assert guard.judge({**figures(2.0), name: value}) == "skip"
    assert guard.reason == f"{name} is {value}"


def test_spikes_in_a_row_lead_back_and_the_count_is_in_the_state() -> None:
    guard = SpikeGuard()
    assert [guard.judge(figures(math.nan)) for _ in range(PATIENCE)] == ["skip"] * PATIENCE
    assert SpikeGuard(guard.state()).judge(figures(math.nan)) == "roll back"
    assert guard.judge(figures(2.0)) == "train"
    assert guard.judge(figures(math.nan)) == "skip"


class Spoiled:
    """A stream some of whose batches, counted over the run, hold a broken image."""

    def __init__(self, inside, spoiled: range, drawn: int) -> None:
        self.inside, self.spoiled, self.drawn = inside, spoiled, drawn

    def figures(self) -> dict[str, float]:
        return self.inside.figures()

    def batches(self, count: int, rank: int, ranks: int) -> Iterator[tuple[Batch, StreamState]]:
        for batch, after in self.inside.batches(count, rank, ranks):
            if self.drawn in self.spoiled:
                batch = replace(batch, pixel_values=torch.full_like(batch.pixel_values, torch.nan))
            self.drawn += 1
            yield batch, after


def spoiled_phase(data, spoiled: range, steps: int, checkpoint_every: int) -> Phase:
    mixture = data.mixture({"digit_string": 1.0}, tokens_per_row=64, rows=1, seed=0)
    whole = [after for _, after in mixture(None).batches(steps + 40)]

    def stream(state: StreamState | None) -> Spoiled:
        drawn = 0 if state is None else 1 + [vars(after) for after in whole].index(vars(state))
        return Spoiled(mixture(state), spoiled, drawn)

    return Phase(stream, Optimization(steps, 3e-3), checkpoint_every)  # type: ignore[arg-type]


def test_a_broken_step_is_passed_over(data, tmp_path, caplog) -> None:
    run = FolderServices(tmp_path)
    with caplog.at_level(logging.WARNING):
        train_tiny(data, [spoiled_phase(data, range(2, 3), 5, 0)], run)
    (line,) = caplog.messages
    assert line.startswith("step 3 is not trained: loss/vision is nan; its samples: digit_string-")
    assert math.isnan(run.losses[3]) and all(math.isfinite(run.losses[step]) for step in (1, 2, 4, 5))
    assert all(value.isfinite().all() for value in load_file(run.latest() / WEIGHTS).values())


def test_a_broken_stretch_leads_back_to_the_checkpoint_and_on_after_it(data, tmp_path, caplog) -> None:
    """Batches 4 to 7 are broken: three are skipped, the fourth rolls back to step 4; the data goes on after it."""

    def run(folder, kill_at: int = 0):
        one = FolderServices(folder, kill_at)
        train_tiny(data, [spoiled_phase(data, range(4, 8), 8, 4)], one)
        return one

    with caplog.at_level(logging.WARNING):
        whole = run(tmp_path / "whole")
    assert "rolled back to the checkpoint of step 4; the data goes on" in caplog.messages
    assert [(index, complete) for index, _, complete in whole.saved] == [(0, False), (1, True)]
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=7)
    again = run(tmp_path / "killed")
    assert (again.latest() / WEIGHTS).read_bytes() == (whole.latest() / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("every", "what"), [(0, "no checkpoint is there"), (2, f"after {ROLLBACKS} returns")])
def test_a_run_that_stays_broken_ends_and_keeps_what_it_has(data, tmp_path, every: int, what: str) -> None:
    run = FolderServices(tmp_path)
    with pytest.raises(MoonflowError, match=what):
        train_tiny(data, [spoiled_phase(data, range(3, 99), 12, every)], run)
    assert all(path.is_dir() for path in tmp_path.glob("saved-*"))
