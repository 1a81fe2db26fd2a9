"""A context that grows from phase to phase of one run."""

from __future__ import annotations

import pytest
import torch

from model.checkpoint.file_names import WEIGHTS
from model.checkpoint.load import load_model
from model.data.batches.folder import DataFolder
from model.network.config import load_config
from model.train.phase import Phase
from tests.step_services import FolderServices, Killed
from tests.training import phase, train_tiny


def phases(data: DataFolder) -> list[Phase]:
    """Two steps as before, two in rows and a context twice as long, two in ones four times as long."""
    mixture = {"recall": 1.0, "fact_qa": 1.0}
    shapes = ((0, 256, 2), (512, 512, 1), (1024, 1024, 1))
    return [
        phase(data, mixture, 2, 1e-3, tokens=tokens, rows=rows, checkpoint_every=1, window=window)
        for window, tokens, rows in shapes
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = FolderServices(tmp_path_factory.mktemp("whole"))
    return run, train_tiny(data, phases(data), run).eval()


def test_every_checkpoint_states_the_context_it_was_trained_in(whole):
    run, _ = whole
    stated = []
    for index in range(6):
        text = load_config(run.folder / f"saved-{index}" / "config.json").text_config
        stated.append((text.max_position_embeddings, text.rope_scaling and text.rope_scaling.factor))
    assert stated == [(256, None)] * 2 + [(512, 2.0)] * 2 + [(1024, 4.0)] * 2


def test_a_reader_of_the_checkpoint_computes_what_training_computed(data, whole):
    run, model = whole
    batch = phases(data)[2].stream(None).next_batch()
    with torch.no_grad():
        assert torch.equal(load_model(run.latest()).eval()(batch), model(batch))


@pytest.mark.parametrize("kill_at", [2, 3, 4, 6], ids=["end of one", "begin of two", "in two", "end"])
def test_a_killed_run_ends_with_the_same_bits_and_config(data, whole, tmp_path, kill_at):
    first = FolderServices(tmp_path, kill_at)
    with pytest.raises(Killed):
        train_tiny(data, phases(data), first)
    second = FolderServices(tmp_path)
    train_tiny(data, phases(data), second)
    assert {**first.losses, **second.losses} == whole[0].losses
    for name in (WEIGHTS, "config.json"):
        assert (second.latest() / name).read_bytes() == (whole[0].latest() / name).read_bytes()
