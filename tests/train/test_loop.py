from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.config import load_config, preset
from model.data.folder import DataFolder
from model.errors import MoonflowError
from model.hf import WEIGHTS, load_model
from model.multimodal import KimiK25
from model.tokenizer import Tokenizer
from model.train import stop
from model.train.checkpoint import OPTIMIZER, STATE, load_checkpoint, load_parent, read_state
from model.train.engine import batch_loss
from model.train.loop import train
from model.train.optimizer import build_optimizer
from model.train.phase import Phase
from tests.corpus import corpus, small_tokenizer

MIXED = {"recall": 1.0, "fact_qa": 1.0, "digit_string": 1.0}
TEXT = {"recall": 1.0, "fact_qa": 1.0}


def phase(data: DataFolder, weights: dict[str, float] = MIXED, steps: int = 4, **settings) -> Phase:
    stream = data.mixture(weights, tokens_per_row=128, rows=2, seed=0)
    return Phase(stream, steps, settings.pop("learning_rate", 3e-3), warmup_steps=2, **settings)


def phases(data: DataFolder) -> list[Phase]:
    """Four steps of everything on images and text, then three of text at another rate; saved at 2, 4, 6 and 7."""
    return [phase(data, checkpoint_every=2), phase(data, TEXT, steps=3, learning_rate=1e-3, checkpoint_every=2)]


@pytest.fixture(scope="module")
def whole(data, around, tmp_path_factory):
    """A run that nothing disturbed."""
    run = around(tmp_path_factory.mktemp("whole"))
    train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, run)
    return run


def test_a_run_saves_reports_and_counts(data, whole):
    assert [(index, complete) for index, _, complete in whole.saved] == [(0, False), (1, False), (2, False), (3, True)]
    assert list(whole.losses) == [1, 2, 3, 4, 5, 6, 7] and all(map(math.isfinite, whole.losses.values()))
    assert set(whole.logged) == {4, 7}
    assert {"loss/text", "loss/vision", "loss/total", "learning_rate", "gradient_norm", "tokens/s"} <= set(
        whole.logged[4]
    )
    assert "loss/vision" not in whole.logged[7]
    counts = [tokens for _, tokens, _ in whole.saved]
    expected = [batch.tokens for one in phases(data) for batch, _ in one.stream(None).batches(one.steps)]
    assert counts == [sum(expected[:n]) for n in (2, 4, 6, 7)]
    loop = read_state(whole.latest())["loop"]
    assert (loop["phase"], loop["step"], loop["saved"], loop["tokens_seen"]) == (1, 3, 4, sum(expected))


@pytest.mark.parametrize(
    "kill_at",
    [1, 3, 4, 5, 7],
    ids=["before any save", "in phase 0", "at the end of phase 0", "at the boundary", "in phase 1"],
)
def test_a_killed_run_ends_with_the_same_bits(data, whole, around, killed, tmp_path, kill_at):
    first = around(tmp_path, kill_at)
    with pytest.raises(killed):
        train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, first)
    torch.manual_seed(kill_at)  # another process has another generator
    second = around(tmp_path)
    train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, second)
    assert min(second.losses) == {1: 1, 3: 3, 4: 3, 5: 5, 7: 7}[kill_at]
    assert {**first.losses, **second.losses} == whole.losses
    assert first.saved + second.saved == whole.saved
    for name in (WEIGHTS, OPTIMIZER):
        assert (second.latest() / name).read_bytes() == (whole.latest() / name).read_bytes()
    ours, theirs = (json.loads((run.latest() / STATE).read_text()) for run in (second, whole))
    assert ours["data_position"] == theirs["data_position"]
    assert {**ours["loop"], "seconds": 0} == {**theirs["loop"], "seconds": 0}


@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_run_that_is_asked_to_end_saves_its_step_and_goes_on_to_the_same_bits(data, whole, around, tmp_path, at):
    class Asked(around):
        def update(self, done: int, total: int, **figures: float) -> None:
            super().update(done, total, **figures)
            if done == at:
                stop.request()

    first, second = Asked(tmp_path), around(tmp_path)
    with pytest.raises(stop.Terminated):
        train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, first)
    assert max(first.losses) == at and not any(complete for _, _, complete in first.saved)
    train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, second)
    assert list(second.losses) == list(range(at + 1, 8)), "no step is taken twice"
    assert (second.latest() / WEIGHTS).read_bytes() == (whole.latest() / WEIGHTS).read_bytes()
    assert {**first.losses, **second.losses} == whole.losses


def test_a_request_that_comes_while_a_phase_s_last_step_is_saved_is_not_forgotten(data, around, tmp_path):
    class Asked(around):
        def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Asked:
            if len(self.losses) == 4:
                stop.request()
            return super().prepare(index=index, tokens_seen=tokens_seen, complete=complete)

    run = Asked(tmp_path)
    with pytest.raises(stop.Terminated):
        train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, run)
    assert list(run.losses) == [1, 2, 3, 4] and [index for index, *_ in run.saved] == [0, 1]


def test_a_request_in_the_last_step_is_answered_by_finishing(data, around, tmp_path):
    class Asked(around):
        def update(self, done: int, total: int, **figures: float) -> None:
            super().update(done, total, **figures)
            if done == total:
                stop.request()

    run = Asked(tmp_path)
    train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, run)
    assert run.saved[-1][2]
    with pytest.raises(stop.Terminated):
        stop.request()  # outside of the steps it ends at once


def test_a_finished_run_does_nothing_more(data, whole, around):
    again = around(whole.folder)
    train(KimiK25(preset("tiny"), seed=1), phases(data), data.path, again)
    assert not again.losses and not again.saved


def test_the_phases_differ_in_what_they_learn(data, around, tmp_path):
    """An alignment phase leaves everything but the projector as it was, the routers' biases included."""
    run, model = around(tmp_path), KimiK25(preset("tiny"), seed=1)
    vision = {"digit_string": 1.0}
    train(
        model, [phase(data, vision, steps=2), phase(data, vision, steps=2, trainable=("mm_projector",))], data.path, run
    )
    before, after = (load_file(tmp_path / f"saved-{n}" / WEIGHTS) for n in (0, 1))
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if name.startswith("mm_projector.")}
    start = KimiK25(preset("tiny"), seed=1).state_dict()
    assert any(
        "vision_tower" in name and not torch.equal(before[name], start[name]) for name in before if name in start
    )


def test_router_biases_move_by_their_rate(data, around, tmp_path):
    model = KimiK25(preset("tiny"), seed=1)
    train(model, [phase(data, TEXT, steps=1, bias_update_rate=0.01)], data.path, around(tmp_path))
    moves = torch.cat([router.e_score_correction_bias for router in model.routers()])
    assert set(moves.abs().mul(100).round().tolist()) <= {0.0, 1.0} and (moves > 0).any() and (moves < 0).any()


def test_overfits_a_handful_of_samples(data, around, tmp_path):
    run = around(tmp_path)
    train(
        KimiK25(preset("tiny"), seed=1), [phase(data, {"fact_qa": 1.0}, steps=25, learning_rate=1e-2)], data.path, run
    )
    assert run.losses[1] > 6
    assert run.losses[25] < 0.5 * run.losses[1]


def test_the_rate_warms_up_and_falls_as_a_cosine(data):
    one = phase(data, steps=100, learning_rate=2.0, final_ratio=0.1)
    assert one.rate(0) == pytest.approx(1.0) and one.rate(1) == pytest.approx(2.0, rel=1e-2)
    assert one.rate(50) == pytest.approx(2.0 * 0.55) and one.rate(100) == pytest.approx(0.2)


def test_the_loss_is_the_mean_over_targets_and_splits_by_modality(data):
    model = KimiK25(preset("tiny"), seed=1).train()
    batch = phase(data).stream(None).next_batch()
    loss, figures = batch_loss(model, batch)
    with torch.no_grad():
        log_probs = model(batch).log_softmax(-1)[torch.arange(len(batch.targets_N)), batch.targets_N]
    count = int(batch.vision_N.sum())
    total = figures["loss/vision"] * count + figures["loss/text"] * (len(batch.targets_N) - count)
    assert total / len(batch.targets_N) == pytest.approx(float(-log_probs.mean()), rel=1e-4)
    assert figures["loss/vision"] == pytest.approx(float(-log_probs[batch.vision_N].mean()), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(-log_probs.mean() + model.auxiliary_loss().detach()), rel=1e-4)


def test_another_tokenizer_is_refused(whole):
    other = Tokenizer.train(corpus()[20:], ranks=768)
    with pytest.raises(MoonflowError, match="wrong tokenizer"):
        load_parent(whole.latest(), other)


def test_a_parent_brings_its_weights(whole):
    same, reference = load_parent(whole.latest(), small_tokenizer()), load_model(whole.latest())
    assert same.config == reference.config == load_config(whole.latest() / "config.json")
    for name, value in reference.state_dict().items():
        assert torch.equal(same.state_dict()[name], value)


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    for path in whole.latest().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", [OPTIMIZER, STATE, WEIGHTS])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_checkpoint_names_the_file(copied, name, damage):
    path = copied / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    model = KimiK25(preset("tiny"))
    with pytest.raises(MoonflowError, match=str(path)):
        load_checkpoint(copied, model, build_optimizer(model, 1e-3))


def test_a_checkpoint_brings_back_the_random_generator(whole):
    model = KimiK25(preset("tiny"))
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        load_checkpoint(whole.latest(), model, build_optimizer(model, 1e-3))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
