"""Zero-vision SFT on a user's conversations, alone and mixed with ours."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from components.prepare_data.user_data import entries, files_of, summary, write_part
from components.runtime.datasets.user_data import parts_at
from components.runtime.steps import disagreement
from components.zero_vision_sft import stage
from components.zero_vision_sft.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.codec.image import ImageConfig, encode_png
from model.data.batches.folder import DataFolder
from model.data.order.family_shares import TEXT, TRAJECTORIES, VISION
from model.data.order.lengths import write_lengths
from model.data.order.shares import with_shares
from model.data.samples.tokenize import tokenize
from model.data.user.user_data import UserSource
from model.evals.likelihood import HeldOut
from model.network.config import preset
from model.network.initial import new_model
from pipelines.profile import load_profile
from tests.step_services import FolderServices, Killed
from tests.tiny_folders import write_training_folder
from tests.training import save_checkpoint

LINES = 240
CONFIG = Config(steps=8, rows=1, tokens_per_row=256, learning_rate=2e-2, sources="support=1", products="float32")


def url(grey: int) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(np.full((28, 28, 3), grey, np.uint8))).decode()


def line(number: int) -> dict:
    """A shop's answers, which a few steps can learn; every third one shows an image."""
    asked: list[dict] = [{"type": "text", "text": f"Where is parcel {number}?"}]
    if number % 3 == 0:
        asked.insert(0, {"type": "image_url", "image_url": {"url": url(number)}})
    done = {"role": "assistant", "content": f"Parcel {number} is on its way."}
    return {"messages": [{"role": "user", "content": asked}, done]}


def prepare(folder: Path, source: Path) -> Path:
    """A data folder with the families of the stage, and the user's source as prepare_data adds it."""
    write_training_folder(folder, TRAJECTORIES, count=12)
    (folder / "eval").mkdir()
    named = UserSource("support", str(source))
    parts = parts_at(named.uri)
    written = [write_part(part, named.name, number, folder, ImageConfig()) for number, part in enumerate(parts)]
    index = json.loads((folder / "index.json").read_text())
    index["own"] = {"support": summary(named, written, files_of(named, parts))}
    index["families"]["support"] = entries(written)
    (folder / "index.json").write_text(json.dumps(index))
    write_lengths(folder, {name: np.array(sizes) for one in written for (_, name), sizes in one.lengths.items()})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "chat.jsonl"
    lines = [json.dumps(line(number)) for number in range(LINES)]
    lines[7] = "{"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "data", source)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    save_checkpoint(folder, new_model(preset("tiny"), seed=0), data, None, {})
    return folder


def train(config: Config, data: Path, parent: Path, services: FolderServices) -> Path:
    return Path(stage.run(config, {"data": str(data), "parent": str(parent)}, services))  # type: ignore[arg-type]


def held_out(data: Path, checkpoint: Path) -> float:
    return HeldOut.of(DataFolder(data), ["support"], 64).likelihood(load_model(checkpoint))["support"].loss


def test_alone_and_mixed_it_lowers_the_held_out_loss_of_the_source(data: Path, parent: Path, tmp_path: Path) -> None:
    def after(sources: str) -> float:
        services = FolderServices(tmp_path / f"run-{sources}")
        config = CONFIG.model_copy(update={"sources": sources})
        loss = held_out(data, train(config, data, parent, services))
        shares = [figures["data/vision_share"] for figures in services.logged.values()]
        assert max(shares) > 0.05 if sources else max(shares) == 0
        return loss

    before, without, mixed, alone = held_out(data, parent), after(""), after("support=0.5"), after("support=1")
    assert alone < 0.6 * before and mixed < 0.8 * before
    assert alone < without - 0.5 and mixed < without - 0.3  # what our own trajectories teach is not what does it


def test_the_share_is_one_of_the_tokens() -> None:
    assert with_shares(TRAJECTORIES, {}) == pytest.approx({n: w / 12 for n, w in TRAJECTORIES.items()})
    assert with_shares(TRAJECTORIES, {"a": 0.75, "b": 0.25}) == {"a": 0.75, "b": 0.25}
    mixture = with_shares(TRAJECTORIES, {"a": 0.3})
    assert mixture["a"] == pytest.approx(0.3) and sum(mixture.values()) == pytest.approx(1)


def test_tokens_come_in_the_stated_share_and_only_answers_are_trained_on(data: Path) -> None:
    folder = DataFolder(data)
    stream = folder.mixture(with_shares(TRAJECTORIES, {"support": 0.3}), tokens_per_row=512, rows=2, seed=3)(None)
    for _ in range(40):
        stream.next_batch()
    tokens = stream.state().tokens
    assert tokens["support"] / sum(tokens.values()) == pytest.approx(0.3, abs=0.01)
    for sample in folder.samples("support", "train"):
        made = tokenize(sample, folder.tokenizer, folder.image_config)
        said = folder.tokenizer.decode(made.input_ids[made.loss_mask].tolist())
        assert said == f"{sample.messages[1]['content']}<|im_end|>"


def test_killed_and_started_again_it_ends_with_the_same_losses(data: Path, parent: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 6, "checkpoint_every": 2, "sources": "support=0.5"})
    whole = FolderServices(tmp_path / "whole")
    train(config, data, parent, whole)
    with pytest.raises(Killed):
        train(config, data, parent, FolderServices(tmp_path / "killed", kill_at=5))
    again = FolderServices(tmp_path / "killed")
    train(config, data, parent, again)
    assert again.losses and all(whole.losses[step] == loss for step, loss in again.losses.items())


def test_conversations_join_no_pre_training(data: Path) -> None:
    assert DataFolder(data).with_user_families(TEXT, VISION) == (TEXT, VISION)


def test_what_is_too_long_for_a_row_is_named_by_file_and_line(
    source: Path, parent: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = source.read_text().split("\n")
    long = [json.dumps({"messages": [{"role": "user", "content": f"{n} " * 90}, {"role": "assistant", "content": "x"}]})
            for n in range(60)]  # fmt: skip
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join([*lines, *long[:5]]))
    data = prepare(tmp_path / "data", path)
    told = DataFolder(data).require_own({"support": 1.0}, 128)
    train_lines = {int(s.key[-8:]) for s in DataFolder(data).samples("support", "train")}
    expected = [f"long.jsonl, line {n}" for n in range(LINES + 1, LINES + 6) if n in train_lines]
    assert expected and [one.split(": ")[1].split(" has")[0] for one in told] == expected
    services = FolderServices(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        train(CONFIG.model_copy(update={"steps": 1, "tokens_per_row": 128}), data, parent, services)
    assert sum("it is left out" in record.message for record in caplog.records) == len(expected)

    path.write_text("\n".join([*lines, *long]))
    with pytest.raises(MoonflowError, match=r"samples of support are longer than a row.*long\.jsonl, line \d+ has"):
        DataFolder(prepare(tmp_path / "more", path)).require_own({"support": 1.0}, 128)


def test_a_source_that_is_not_there_is_told(data: Path, parent: Path, tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="'chats' is not among your sources.*it has support.*prepare_data.sources"):
        train(CONFIG.model_copy(update={"sources": "chats=0.2"}), data, parent, FolderServices(tmp_path))
    with pytest.raises(MoonflowError, match="it has none"):
        DataFolder(write_training_folder(tmp_path)).require_own({"chats": 1.0}, 128)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("support", "is not a share"), ("support=", "is not a share"), ("support=0", "is not a share"),
        ("support=1.1", "is not a share"), ("support=1.2.3", "is not a share"), ("Support=0.5", "is not a share"),
        ("a=0.2,a=0.3", "two shares"), ("a=0.6, b=0.5", "1.1 in sum"),
    ],
)  # fmt: skip
def test_wrong_shares_are_told(text: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        Config.parse({"sources": text}, "step zero_vision_sft")


def test_a_profile_that_names_a_source_in_one_place_only_is_refused() -> None:
    share = "zero_vision_sft.sources=support=0.3"
    with pytest.raises(MoonflowError, match="names 'support', and prepare_data.sources has none.*support=URI"):
        load_profile("tiny", [share])
    with pytest.raises(MoonflowError, match="prepare_data.sources has cats, web"):
        load_profile("tiny", [share, "prepare_data.sources=cats:2=/data/cats,web=s3://b/support=x"])
    assert disagreement(load_profile("tiny", [share, "prepare_data.sources=a=/a, support=/b.jsonl"]).steps) == ""


def test_a_weight_of_conversations_is_refused(source: Path) -> None:
    with pytest.raises(MoonflowError, match="zero_vision_sft.sources=support=0.3"):
        files_of(UserSource("support", str(source), 2.0), parts_at(str(source)))
