from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components.runtime import manifest
from components.runtime.folder_store import FolderStore
from components.runtime.store import NotInStore, ObjectStore
from model.data.mixtures import TEXT, VISION
from model.errors import MoonflowError
from tests.tiny_folders import write_training_folder


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = ObjectStore.from_env({"MOONFLOW_STORE": f"file://{tmp_path}/objects"})
    made.check()
    return made


def test_objects_come_back_and_are_listed_as_from_s3(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("run/step/0/a.bin", "run/step/0/deep/b.bin", "run/step/10/a.bin", "run/stepping/c"):
        store.put(key, key.encode())
    assert store.get("run/step/0/deep/b.bin") == b"run/step/0/deep/b.bin"
    assert store.get(store.uri("run/stepping/c")) == b"run/stepping/c"
    assert store.list("run/step/") == ["run/step/0/a.bin", "run/step/0/deep/b.bin", "run/step/10/a.bin"]
    assert store.list("run/step") == [*store.list("run/step/"), "run/stepping/c"]
    assert store.list(store.uri("run/step/0/")) == [
        store.uri("run/step/0/a.bin"),
        store.uri("run/step/0/deep/b.bin"),
    ]
    assert store.list("absent/") == [] and store.folders("absent/") == []
    assert store.folders("run/step/") == ["0", "10"]
    assert store.exists("run/stepping/c") and not store.exists("run/step")
    (tmp_path / "up").write_bytes(b"up")
    store.upload(tmp_path / "up", "run/up")
    store.download("run/up", tmp_path / "new" / "down")
    assert (tmp_path / "new" / "down").read_bytes() == b"up"


def test_what_is_not_there_is_said(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotInStore, match="objects/absent does not exist"):
        store.get("absent")
    with pytest.raises(NotInStore, match="objects/absent does not exist"):
        store.download("absent", tmp_path / "down")
    assert not list(tmp_path.glob("down*"))
    store.delete("absent")
    with pytest.raises(MoonflowError, match="leads out of"):
        store.put("../escaped", b"")
    with pytest.raises(MoonflowError, match="write file:///absolute/folder"):
        FolderStore("file://relative")


def test_a_deleted_prefix_is_gone(store: ObjectStore) -> None:
    store.put("run/step/0/deep/a", b"")
    store.delete("run/step/0/deep/a")
    assert store.folders("run/") == []


def test_one_of_many_writers_wins(store: ObjectStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: store.put_new("manifest.json", b"%d" % number), range(16)))
    assert sum(won) == 1 and store.get("manifest.json") == b"%d" % won.index(True)
    assert [path.name for path in (tmp_path / "objects").iterdir()] == ["manifest.json"]


ALLOWED = ("av", "llvmlite", "numba", "numpy", "PIL", "pydantic", "safetensors", "tokenizers", "torch")
THEIRS = (  # what these import themselves
    "annotated_types", "filelock", "fsspec", "functorch", "huggingface_hub", "jinja2", "markupsafe", "mpmath",
    "networkx", "numpy.libs", "av.libs", "packaging", "pillow.libs", "pydantic_core", "setuptools", "sympy", "torchgen",
    "typing_extensions.py", "typing_inspection",
)  # fmt: skip
STEPS = """
import json, sys
from components.runtime.step import run_step
data, caption, joint = sys.argv[1:]
made = run_step("vit_pretrain", json.loads(caption), {"data": data})
made = run_step("joint_pretrain", json.loads(joint), {"data": data, "parent": made.uri})
print("made", made.uri)
"""


def test_stages_train_with_torch_and_a_few_packages_alone(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU machine of one's own: no boto3, MLflow or kfp, none of the generators'; objects in a folder."""
    settings = {
        "MOONFLOW_STORE": store.uri("").rstrip("/"), "MOONFLOW_RUN_ID": "run", "MLFLOW_TRACKING_URI": "",
        "MOONFLOW_RUN_DIR": str(tmp_path / "run"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").mkdir()
    named = {"run_id": "run", "step": "prepare_data", "index": 0, "kind": "data"}
    data = manifest.publish(
        store, "run/prepare_data/0", write_training_folder(tmp_path / "data", TEXT | VISION, 4), **named
    )
    few = tmp_path / "packages"
    few.mkdir()
    installed = Path(torch.__file__).parent.parent
    for package in (*ALLOWED, *THEIRS):
        if (installed / package).exists():
            (few / package).symlink_to(installed / package)
    short = {"steps": 2, "rows": 2, "tokens_per_row": 128}
    caption = short | {"projector_steps": 1, "preset": "tiny"}
    told = subprocess.run(
        # Without site, Python sees no other installed package.
        [sys.executable, "-S", "-c", STEPS, data.uri, json.dumps(caption), json.dumps(short)],
        env={**os.environ, "PYTHONPATH": f"{few}:{Path(__file__).parents[3]}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert f"made {store.uri('run/joint_pretrain/0')}" in told.stdout
