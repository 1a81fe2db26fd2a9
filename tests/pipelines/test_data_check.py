"""`moonflow data check` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components.runtime import manifest as manifests
from components.runtime.store import ObjectStore
from model.data.families import FAMILIES
from model.data.shards import write_shard
from model.errors import MoonflowError
from model.image import encode_png
from pipelines.data_check import examine
from tests.corpus import small_tokenizer


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Two families as prepare_data leaves them: one of text, one of images."""
    folder = tmp_path / "data"
    small_tokenizer().save(folder)
    (folder / "train").mkdir()
    families = {}
    for name in ("recall", "digit_string"):
        shard = f"train/{name}-00000.tar"
        (folder / shard).write_bytes(write_shard(FAMILIES[name].sample(0, "train", n) for n in range(5)))
        families[name] = {"train": [{"shard": shard, "samples": 5}], "eval": []}
    (folder / "index.json").write_text(json.dumps({"families": families, "image": {}}))
    return folder


def test_prepared_data_is_counted_by_its_own_tokenizer(prepared: Path) -> None:
    found = examine(str(prepared))
    assert found.exact and not found.problems
    text, vision = found.tallies["recall train"], found.tallies["digit_string train"]
    assert (text.samples, vision.samples) == (5, 5)
    assert text.text >= text.longest > 0 == text.vision == text.media
    assert vision.vision > vision.media > 0 == vision.text


def test_what_is_wrong_with_prepared_data_is_named(prepared: Path) -> None:
    shard = prepared / "train" / "recall-00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    found = examine(str(prepared))
    assert found.problems and all("recall-00000.tar" in problem for problem in found.problems)
    assert "5 samples" in found.problems[-1]


def test_a_folder_of_images_from_the_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.zeros((28, 28, 3), np.uint8)))
    (tmp_path / "a.txt").write_text("nothing")
    small_tokenizer().save(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "pipelines.cli", "data", "check", str(tmp_path)]
    root = Path(__file__).parents[2]
    bad = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert bad.returncode == 1 and "no b.txt beside it" in bad.stdout and "problems: 1" in bad.stdout
    (tmp_path / "b.txt").write_text("all")
    found = examine(str(tmp_path), tmp_path / "tokenizer")
    assert found.exact and not found.problems and found.tallies["pairs"].samples == 2
    assert json.loads(found.as_json())["families"]["pairs"]["media"] == 2


def test_where_nothing_lies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match=r"no \.tar shards"):
        examine(str(tmp_path))


@pytest.mark.services
def test_the_object_store(prepared: Path, store: ObjectStore, step_environment: str) -> None:
    made = manifests.publish(
        store, f"{step_environment}/prepare_data/0", prepared, run_id=step_environment, step="prepare_data", index=0,
        kind="data",
    )  # fmt: skip
    assert examine(made.uri).tallies == examine(str(prepared)).tallies
    bare = store.uri(f"{step_environment}/bare")
    store.upload(prepared / "train" / "recall-00000.tar", f"{step_environment}/bare/x.tar")
    assert examine(bare, prepared).tallies["recall"] == examine(str(prepared)).tallies["recall train"]
    for odd in ("bare#1", "bare?x", "bare%20x", "bare x"):
        with pytest.raises(MoonflowError, match=r"no \.tar shards"):
            examine(store.uri(f"{step_environment}/{odd}"), prepared)
        store.upload(prepared / "train" / "recall-00000.tar", f"{step_environment}/{odd}/{odd}.tar")
        assert examine(store.uri(f"{step_environment}/{odd}"), prepared).tallies == examine(bare, prepared).tallies
    with pytest.raises(MoonflowError, match=r"no \.tar shards"):
        examine(store.uri(f"{step_environment}/nothing"))


def test_a_folders_address_is_that_folder(prepared: Path, tmp_path: Path) -> None:
    assert examine(f"file://{prepared}").tallies == examine(str(prepared)).tallies
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "a%20b" / "x.tar").write_bytes((prepared / "train" / "recall-00000.tar").read_bytes())
    assert examine(f"file://{tmp_path}/a%20b", prepared).tallies["recall"].samples
    with pytest.raises(MoonflowError, match="is no folder"):
        examine(f"file://{tmp_path}/a b", prepared)
