from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components.runtime.checkpoints import manifest
from components.runtime.store.folder_store import FolderStore
from components.runtime.store.object_store import NotInStore, ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.data.order.family_shares import TEXT, VISION
from tests.published import publish_output
from tests.tiny_folders import write_training_folder


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = open_store({"MOONFLOW_STORE": f"file://{tmp_path}/objects"})
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
    for key in ("../escaped", str(tmp_path / "escaped")):
        with pytest.raises(MoonflowError, match="leads out of"):
            store.put(key, b"")
    assert not (tmp_path / "escaped").exists()
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


WRITER = """
import sys, time
from pathlib import Path
from components.runtime.store.folder_store import FolderStore
from model.boundary.whole_file import part_file
with part_file(Path(sys.argv[1])) as (stream, part):
    stream.write(b"half")
    stream.flush()
    print(part.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process in the middle of writing ``objects/run/model``, and its part."""
    target = tmp_path / "objects" / "run" / "model"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, target.with_name(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_dead_writer_left_is_swept_and_a_living_ones_is_not(
    store: ObjectStore, writer: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, part = writer
    store.check()
    assert part.read_bytes() == b"half" and store.list() == [], "it is still being written"
    earlier = tmp_path / "objects" / "gone" / f"model.part-{process.pid}-1-0"  # as an earlier version named it
    earlier.parent.mkdir()
    earlier.write_bytes(b"half")
    process.kill()
    process.wait()
    store.check()
    assert list((tmp_path / "objects").iterdir()) == [], "neither the part nor the folder that it alone was in"


@pytest.mark.parametrize("name", ["film.part-1.mkv", "film.part-1", ".part-one", "a.part-1-2", ".part-"])
def test_a_file_of_the_users_is_never_swept(store: ObjectStore, tmp_path: Path, name: str) -> None:
    own = tmp_path / "objects" / name
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"mine")
    store.check()
    assert own.read_bytes() == b"mine"


def test_a_full_disk_is_told_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    store = FolderStore(f"file://{small_disk}")
    store.put("kept", b"kept")
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    for write in (
        lambda: store.upload(tmp_path / "big", "run/big"),
        lambda: store.put("run/big", bytes(3 << 20)),
        lambda: store.put_new("run/big", bytes(3 << 20)),
    ):
        with pytest.raises(MoonflowError, match="disk full while writing .*run/big: free some space"):
            write()
        assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["kept"], "its part is left"
    # A writer that was killed when the disk was full: its part is what fills it.
    (small_disk / f".part-{'dead' * 4}").write_bytes(bytes(1_900_000))
    with pytest.raises(MoonflowError, match="disk full"):
        store.put("small", bytes(300_000))
    store.check()
    store.put("small", bytes(300_000))
    assert store.list() == ["kept", "small"]


def test_a_full_store_has_its_room_back_after_a_failed_publication(small_disk: Path, tmp_path: Path) -> None:
    store = FolderStore(f"file://{small_disk}")
    (tmp_path / "made").mkdir()
    for number in range(4):
        (tmp_path / "made" / f"{number}.bin").write_bytes(bytes(700_000))
    with pytest.raises(MoonflowError, match="disk full"):
        publish_output(store, tmp_path / "made", "r", "s")
    assert store.list() == []
    (tmp_path / "made" / "3.bin").write_bytes(b"")
    (tmp_path / "made" / "2.bin").write_bytes(b"")
    publish_output(store, tmp_path / "made", "r", "s")
    manifest.fetch(store, "r/s/0", tmp_path / "back")


@pytest.mark.parametrize("kind", ["folder", "file", "dangling"])
def test_links_do_not_lead_out_of_the_store(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theirs").write_bytes(b"theirs")
    link, key = tmp_path / "objects" / "link", "link/theirs" if kind == "folder" else "link"
    link.symlink_to({"folder": outside, "file": outside / "theirs", "dangling": outside / "new"}[kind])
    for act in (
        lambda: store.get(key),
        lambda: store.download(key, tmp_path / "down"),
        lambda: store.put(key, b"x"),
        lambda: store.put_new(key, b"x"),
        lambda: store.delete(key),
        lambda: store.exists(key),
    ):
        with pytest.raises(MoonflowError, match="reached by a symbolic link"):
            act()
    assert store.list() == [] and store.folders("") == []
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("theirs", b"theirs")]


def test_the_store_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = FolderStore(f"file://{tmp_path}/link")
    store.put("run/a", b"a")
    assert (tmp_path / "real" / "run" / "a").read_bytes() == b"a" == store.get("run/a")
    assert store.list() == ["run/a"] and store.folders("") == ["run"]


def test_what_a_folder_cannot_hold_is_one_line(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a", b"")
    for key in ("a/b", "n" * 300):
        with pytest.raises(MoonflowError, match="cannot be used") as raised:
            store.put(key, b"")
        assert "\n" not in str(raised.value)
    store.put("b/c", b"")
    for write in (store.put, store.put_new):
        with pytest.raises(MoonflowError, match="cannot be used"):
            write("b", b"")
    with pytest.raises(NotInStore):
        store.get("a/b")


def test_writers_and_deleters_of_one_folder_do_not_disturb_each_other(store: ObjectStore) -> None:
    def work(number: int) -> None:
        for _ in range(30):
            store.put(f"run/step/0/{number}", b"x")
            store.delete(f"run/step/0/{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.list() == []


def test_a_sweep_takes_nothing_from_living_writers(store: ObjectStore) -> None:
    done = threading.Event()

    def sweep_all_the_time() -> None:
        while not done.is_set():
            store.check()

    def write(number: int) -> None:
        for round_ in range(40):
            store.put(f"run/{number}/{round_}", b"%d" % number * 1000)

    with ThreadPoolExecutor(6) as pool:
        sweepers = [pool.submit(sweep_all_the_time) for _ in range(2)]
        writers = [pool.submit(write, number) for number in range(4)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        for sweeper in sweepers:
            sweeper.result()
    assert [store.get(key) for key in store.list("run/3/")] == [b"3" * 1000] * 40 and len(store.list()) == 160


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


@pytest.mark.slow
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
    data = publish_output(
        store, write_training_folder(tmp_path / "data", TEXT | VISION, 4), "run", "prepare_data", kind="data"
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
        env={**os.environ, "PYTHONPATH": f"{few}:{Path(__file__).parents[4]}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert f"made {store.uri('run/joint_pretrain/0')}" in told.stdout
