from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import WEIGHTS
from model.checkpoint.folder import OPTIMIZER, STATE, load_parent, read_state
from model.checkpoint.load import load_model
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.network.config import load_config, preset
from model.network.initial import new_model
from model.optimizer.muon_clip import build_optimizer
from model.optimizer.optimization import Optimization
from model.train import stop
from model.train.phase import Phase
from tests.corpus import corpus, small_tokenizer
from tests.step_services import FolderServices, Killed
from tests.training import batch_loss, load_checkpoint, phase, train_tiny

MIXED = {"recall": 1.0, "fact_qa": 1.0, "digit_string": 1.0}
TEXT = {"recall": 1.0, "fact_qa": 1.0}


def phases(data: DataFolder) -> list[Phase]:
    """Four steps of everything on images and text, then three of text at another rate; saved at 2, 4, 6 and 7."""
    everything = phase(data, MIXED, 4, 3e-3, checkpoint_every=2, warmup_steps=2)
    return [everything, phase(data, TEXT, 3, 1e-3, checkpoint_every=2, warmup_steps=2)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbed."""
    run = FolderServices(tmp_path_factory.mktemp("whole"))
    train_tiny(data, phases(data), run)
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
def test_a_killed_run_ends_with_the_same_bits(data, whole, tmp_path, kill_at):
    first = FolderServices(tmp_path, kill_at)
    with pytest.raises(Killed):
        train_tiny(data, phases(data), first)
    torch.manual_seed(kill_at)  # another process has another generator
    second = FolderServices(tmp_path)
    train_tiny(data, phases(data), second)
    assert min(second.losses) == {1: 1, 3: 3, 4: 3, 5: 5, 7: 7}[kill_at]
    assert {**first.losses, **second.losses} == whole.losses
    assert first.saved + second.saved == whole.saved
    for name in (WEIGHTS, OPTIMIZER):
        assert (second.latest() / name).read_bytes() == (whole.latest() / name).read_bytes()
    ours, theirs = (json.loads((run.latest() / STATE).read_text()) for run in (second, whole))
    assert ours["data_position"] == theirs["data_position"]
    assert {**ours["loop"], "seconds": 0} == {**theirs["loop"], "seconds": 0}


@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_run_that_is_asked_to_end_saves_its_step_and_goes_on_to_the_same_bits(data, whole, tmp_path, at):
    first, second = FolderServices(tmp_path), FolderServices(tmp_path)
    first.on_update = lambda done: stop.request() if done == at else None
    with pytest.raises(stop.Terminated):
        train_tiny(data, phases(data), first)
    assert max(first.losses) == at and not any(complete for _, _, complete in first.saved)
    train_tiny(data, phases(data), second)
    assert list(second.losses) == list(range(at + 1, 8)), "no step is taken twice"
    assert (second.latest() / WEIGHTS).read_bytes() == (whole.latest() / WEIGHTS).read_bytes()
    assert {**first.losses, **second.losses} == whole.losses


def test_a_request_that_comes_while_a_phase_s_last_step_is_saved_is_not_forgotten(data, tmp_path):
    class Asked(FolderServices):
        def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Asked:
            if len(self.losses) == 4:
                stop.request()
            return super().prepare(index=index, tokens_seen=tokens_seen, complete=complete)

    run = Asked(tmp_path)
    with pytest.raises(stop.Terminated):
        train_tiny(data, phases(data), run)
    assert list(run.losses) == [1, 2, 3, 4] and [index for index, *_ in run.saved] == [0, 1]


def test_a_request_in_the_last_step_is_answered_by_finishing(data, tmp_path):
    run = FolderServices(tmp_path)
    run.on_update = lambda done: stop.request() if done == 7 else None
    train_tiny(data, phases(data), run)
    assert run.saved[-1][2]
    with pytest.raises(stop.Terminated):
        stop.request()  # outside of the steps it ends at once


def test_a_finished_run_does_nothing_more(data, whole):
    again = FolderServices(whole.folder)
    train_tiny(data, phases(data), again)
    assert not again.losses and not again.saved


def test_the_phases_differ_in_what_they_learn(data, tmp_path):
    """An alignment phase leaves everything but the projector as it was, the routers' biases included."""
    vision = {"digit_string": 1.0}
    first, second = phase(data, vision, 2, 3e-3), phase(data, vision, 2, 3e-3, trainable=("mm_projector",))
    train_tiny(data, [first, second], FolderServices(tmp_path))
    before, after = (load_file(tmp_path / f"saved-{n}" / WEIGHTS) for n in (0, 1))
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if name.startswith("mm_projector.")}
    start = new_model(preset("tiny"), seed=1).state_dict()
    assert any(
        "vision_tower" in name and not torch.equal(before[name], start[name]) for name in before if name in start
    )


def test_router_biases_move_by_their_rate(data, tmp_path):
    model = train_tiny(data, [phase(data, TEXT, 1, 3e-3, bias_update_rate=0.01)], FolderServices(tmp_path))
    moves = torch.cat([router.e_score_correction_bias for router in model.routers()])
    assert set(moves.abs().mul(100).round().tolist()) <= {0.0, 1.0} and (moves > 0).any() and (moves < 0).any()


def test_overfits_a_handful_of_samples(data, tmp_path):
    run = FolderServices(tmp_path)
    train_tiny(data, [phase(data, {"fact_qa": 1.0}, 25, 1e-2, warmup_steps=2)], run)
    assert run.losses[1] > 6
    assert run.losses[25] < 0.5 * run.losses[1]


def test_the_rate_warms_up_and_falls_as_a_cosine():
    one = Optimization(100, learning_rate=2.0, warmup_steps=2, final_ratio=0.1)
    assert one.rate(0) == pytest.approx(1.0) and one.rate(1) == pytest.approx(2.0, rel=1e-2)
    assert one.rate(50) == pytest.approx(2.0 * 0.55) and one.rate(100) == pytest.approx(0.2)


def test_the_loss_is_the_mean_over_targets_and_splits_by_modality(data):
    model = new_model(preset("tiny"), seed=1).train()
    batch = phases(data)[0].stream(None).next_batch()
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
    model = new_model(preset("tiny"))
    with pytest.raises(MoonflowError, match=str(path)):
        load_checkpoint(copied, model, build_optimizer(model, 1e-3))


def test_a_checkpoint_brings_back_the_random_generator(whole):
    model = new_model(preset("tiny"))
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        load_checkpoint(whole.latest(), model, build_optimizer(model, 1e-3))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
