from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.file_names import WEIGHTS
from model.checkpoint.folder import OPTIMIZER, STATE
from model.checkpoint.load import load_model
from model.checkpoint.saving import AsyncSaver, HostCopies
from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import MuonClip, build_optimizer
from tests.step_services import FolderServices
from tests.training import load_checkpoint, save_checkpoint

NAME = "language_model.lm_head.weight"


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def trained() -> tuple[KimiK25, MuonClip]:
    """A model and its optimizer, which has a state."""
    model = new_model(preset("tiny"), seed=1)
    optimizer = build_optimizer(model, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    return model, optimizer


class Gate:
    """Checkpoints in a folder, whose publications wait until the gate is opened, and fail if told so."""

    def __init__(self, folder: Path) -> None:
        self.kept = FolderServices(folder)
        self.open, self.fails, self.publishing, self.most = threading.Event(), False, 0, 0

    def prepare(self, **fields):
        self.kept.prepare(**fields)
        return self

    def publish(self, folder: Path, added: object = ()) -> None:
        self.publishing += 1
        self.most = max(self.most, self.publishing)
        assert self.open.wait(60)
        self.publishing -= 1
        if self.fails:
            raise OSError("the store is gone")
        self.kept.publish(folder)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "kept")


def save(saver: AsyncSaver, trained: tuple[KimiK25, MuonClip], index: int, complete: bool = False) -> None:
    model, optimizer = trained
    saver.save(
        model.config, model.state_dict(), optimizer.named_state(), {"loop": {"step": index}},
        index=index, tokens_seen=index * 10, complete=complete,
    )  # fmt: skip


def spoil(trained: tuple[KimiK25, MuonClip]) -> None:
    """Training goes on: everything changes."""
    model, optimizer = trained
    with torch.no_grad():
        for value in (*model.state_dict().values(), *optimizer.named_state().values()):
            value.add_(1)
    torch.rand(3)


def test_a_save_holds_its_moment_while_training_goes_on(gate, trained, tokenizer_folder, tmp_path) -> None:
    model, optimizer = trained
    torch.manual_seed(7)
    save_checkpoint(tmp_path / "sync", model, tokenizer_folder, optimizer, {"loop": {"step": 0}})
    drawn = torch.rand(3)
    torch.manual_seed(7)
    with AsyncSaver(gate, gate.kept.work, tokenizer_folder) as saver:
        save(saver, trained, 0)
        assert gate.kept.saved == [], "it returned before anything was published"
        spoil(trained)
        gate.open.set()
    saved = gate.kept.latest()
    assert {path.name for path in saved.iterdir()} == {path.name for path in (tmp_path / "sync").iterdir()}
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "sync" / path.name).read_bytes(), path.name
    state = load_checkpoint(saved, model, optimizer)
    assert state["loop"] == {"step": 0} and torch.equal(torch.rand(3), drawn)
    assert list(gate.kept.work.iterdir()) == [], "what was written on the way is gone"


def test_one_save_at_a_time_and_in_order(gate, trained, tokenizer_folder) -> None:
    with AsyncSaver(gate, gate.kept.work, tokenizer_folder) as saver:
        save(saver, trained, 0)
        before = trained[0].state_dict()[NAME].clone()
        spoil(trained)
        second = threading.Thread(target=save, args=(saver, trained, 1))
        second.start()
        second.join(0.3)
        assert second.is_alive() and gate.kept.saved == [], "the second waits for the first"
        gate.open.set()
        second.join()
    assert gate.kept.saved == [(0, 0, False), (1, 10, False)] and gate.most == 1
    first = load_model(gate.kept.folder / "saved-0").state_dict()[NAME]
    assert torch.equal(first, before), "the second's copies did not disturb the first's"
    assert torch.equal(load_model(gate.kept.folder / "saved-1").state_dict()[NAME], before + 1)


def test_the_last_save_is_waited_for(gate, trained, tokenizer_folder) -> None:
    threading.Timer(0.3, gate.open.set).start()
    saver = AsyncSaver(gate, gate.kept.work, tokenizer_folder)
    save(saver, trained, 4, complete=True)
    assert gate.kept.saved == [(4, 40, True)]


@pytest.mark.parametrize("asks", ["next save", "wait", "end"])
def test_a_failed_save_is_told_once(gate, trained, tokenizer_folder, asks: str) -> None:
    gate.fails = True
    gate.open.set()
    saver = AsyncSaver(gate, gate.kept.work, tokenizer_folder)
    save(saver, trained, 0)
    with pytest.raises(OSError, match="the store is gone"):
        if asks == "next save":
            save(saver, trained, 1)
        elif asks == "wait":
            saver.wait()
        else:
            with saver:
                pass
    gate.fails = False
    saver.wait()
    save(saver, trained, 1, complete=True)
    assert gate.kept.saved == [(1, 10, True)]


def test_a_training_that_fails_lets_the_save_in_flight_end_and_keeps_its_own_error(
    gate, trained, tokenizer_folder
) -> None:
    threading.Timer(0.3, gate.open.set).start()
    with pytest.raises(ZeroDivisionError), AsyncSaver(gate, gate.kept.work, tokenizer_folder) as saver:
        save(saver, trained, 0)
        _ = 1 / 0
    assert gate.kept.saved == [(0, 0, False)]
    gate.fails = True
    with pytest.raises(ZeroDivisionError) as raised, AsyncSaver(gate, gate.kept.work, tokenizer_folder) as saver:
        save(saver, trained, 1)
        _ = 1 / 0
    assert raised.value.__notes__ == ["the checkpoint in flight failed, too: the store is gone"]


def test_host_copies_use_their_buffers_again() -> None:
    copies, value = HostCopies(), torch.arange(6.0)
    tensors: dict[str, Tensor] = {"a": value.view(2, 3), "b": torch.zeros(())}
    first = copies.copy(tensors)
    value += 1
    assert first["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and first["b"].shape == ()
    second = copies.copy({"a": value.view(2, 3), "b": torch.zeros(2)})
    assert second["a"].data_ptr() == first["a"].data_ptr() and second["a"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert second["b"].shape == (2,)


def test_files_are_the_released_names_and_slices(gate, trained, tokenizer_folder) -> None:
    gate.open.set()
    save(AsyncSaver(gate, gate.kept.work, tokenizer_folder), trained, 0, complete=True)
    saved = gate.kept.latest()
    assert {WEIGHTS, OPTIMIZER, STATE} <= {path.name for path in saved.iterdir()}
    assert json.loads((saved / STATE).read_text())["loop"] == {"step": 0}
