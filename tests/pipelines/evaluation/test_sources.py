"""``moonflow evaluate``: the checkpoint of a run, of a member of ``moonflow seeds``, and in a store."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.import_checkpoint.config import LAID_OUT
from components.promote.export import EXPORTED_FROM
from components.runtime.checkpoints.manifest import Manifest, publish
from components.runtime.store.folder_store import FolderStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.checkpoint.export import quantise_checkpoint
from pipelines.profile import load_profile
from pipelines.run import lay_out
from pipelines.run_folder import run_id_of
from pipelines.seeds.rule import run_id
from pipelines.services import Services, stop_kept
from pipelines.services.local import service_processes
from pipelines.source_run import fetch_source
from tests.pipelines.evaluation.command import Run, suite, tasks_of
from tests.pipelines.older_run import write_older_run
from tests.tiny_folders import write_checkpoint, write_data_folder


@pytest.mark.slow
@pytest.mark.services
def test_a_run_folder_stands_for_its_last_finished_step(
    two: Path, tmp_path: Path, run: Run, scored: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    write_older_run(run_dir, load_profile("smoke", ["evaluate.samples=3"]))
    code, out, err = run(run_dir)
    assert (code, out) == (2, "") and "has no finished training step" in err.splitlines()[-1]
    (tmp_path / "data").mkdir()
    write_data_folder(tmp_path / "data", count=4)
    with Services.start(run_dir) as services:
        store = open_store(services.environment)
        fields = {"run_id": "smoke", "index": 0}
        data = publish(store, "smoke/prepare_data/0", tmp_path / "data", step="prepare_data", kind="data", **fields)
        for step, complete in (("zero_vision_sft", True), ("joint_rl", True), ("parl", False)):
            publish(
                store, f"smoke/{step}/0", two, step=step, kind="checkpoint", complete=complete,
                extra={"inputs": {"data": data.uri}}, **fields,
            )  # fmt: skip
        with monkeypatch.context() as environment:
            environment.setattr(tempfile, "tempdir", str(tmp_path))
            for name, value in services.environment.items():
                environment.setenv(name, value)
            unfinished = scored("s3://moonflow/runs/smoke/parl/0", *suite("digit_count"), "--tasks", 3)
    assert unfinished["checkpoint"].startswith("step parl") and unfinished["suites"][0]["n"] == 3
    found = scored(run_dir, *suite("digit_count", "wide_search_single"))
    assert found["checkpoint"].startswith("step joint_rl of run smoke, checkpoint 0")
    assert [row["n"] for row in found["suites"]] == [2, 3]
    earlier = scored(run_dir / "zero_vision_sft", *suite("digit_count", "wide_search_single"))
    assert earlier["checkpoint"].startswith("step zero_vision_sft of run smoke, checkpoint 0")
    assert [row["n"] for row in earlier["suites"]] == [2, 3], "as many as the run's own evaluation"
    code, out, err = run(run_dir / "mid_train", *suite("digit_count"))
    assert (code, out) == (2, "") and "has no complete checkpoint of mid_train" in err.splitlines()[-1]
    code, out, err = run(run_dir / "prepare_data/0", *suite("digit_count"))
    assert (code, out) == (2, "") and "is what prepare_data wrote (data), not" in err and "import_checkp" not in err
    code, out, err = run(run_dir, *suite("digit_count"), "--tasks", 2)
    assert code == 0 and "note: parl is not finished, so it is left out" in err and "digit_count" in out


@pytest.mark.slow
@pytest.mark.services
def test_a_member_of_seeds_is_read_from_the_kept_services_of_its_folder(
    two: Path, tmp_path: Path, scored: Callable[..., dict[str, Any]]
) -> None:
    folder, profile = tmp_path / "seeds-smoke", load_profile("smoke", ["evaluate.samples=3"])
    member = folder / "seeds-1"
    lay_out(profile, member, run_id(profile, 1))
    (folder / "seeds.toml").write_text(profile.as_toml())
    with Services.start(folder, keep=True) as services:
        store, prefix = open_store(services.environment), f"{run_id(profile, 1)}/joint_rl/0"
        publish(store, prefix, two, run_id=run_id(profile, 1), step="joint_rl", index=0, kind="checkpoint")
    kept = service_processes(folder)
    try:
        found = scored(member, *suite("digit_count"))
        assert found["checkpoint"].startswith("step joint_rl of run smoke-seeds-1, checkpoint 0")
        later = load_profile("post_train", [f"import_checkpoint.source={member}/joint_rl"])
        copied = Path(fetch_source(later, tmp_path / "later", Console())[LAID_OUT])
        assert (copied / "config.json").read_bytes() == (two / "config.json").read_bytes()
        assert service_processes(folder) == kept != []
    finally:
        stop_kept(folder)
    assert not (member / "store").exists()


@pytest.mark.parametrize("given", ["~nobody-of-that-name/x", "c" * 300])
def test_a_path_that_can_be_no_checkpoint_is_one_line(given: str, run: Run) -> None:
    code, out, err = run(given)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "is no checkpoint: give a folder" in err
    assert "`moonflow run --profile tiny` makes runs/tiny" in err


def test_a_run_of_an_ablation_stands_for_none_of_its_checkpoints(tmp_path: Path, run: Run) -> None:
    lay_out(load_profile("claims-sft-smoke", ["import_checkpoint.source=runs/base"]), tmp_path / "run", "ablation")
    (tmp_path / "run" / "tasks" / "sft_arm-narrow-0.json").write_text("{}")
    code, out, err = run(tmp_path / "run")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "name one of its steps" in err and err.endswith("; it has begun sft_arm-narrow-0\n")


def test_a_damaged_argument_of_a_run_is_one_line(tmp_path: Path) -> None:
    for text in ("", "{}", "[]", '"p00_run_id"'):
        (tmp_path / "arguments.json").write_text(text)
        with pytest.raises(MoonflowError, match=r"arguments.json cannot be read or is damaged .*: moonflow run "):
            run_id_of(tmp_path)


class Published:
    """A run in a folder store: data, the frozen sub-agents and the last step."""

    def __init__(self, folder: Path, last: Path) -> None:
        self.store = FolderStore(f"file://{folder}/store")
        (folder / "data").mkdir()
        write_data_folder(folder / "data", count=3)
        self.data = self.publish("prepare_data", folder / "data", kind="data")
        sft = write_checkpoint(folder / "sft")
        self.sft = self.publish("zero_vision_sft", sft)
        (last / "optimizer-00001-of-00001.safetensors").touch()  # what serves needs no training state
        self.parl = self.publish("parl", last)

    def publish(self, step: str, folder: Path, kind: Any = "checkpoint", name: str = "0", **extra: Any) -> Manifest:
        inputs = {"data": self.data.uri} if kind == "checkpoint" else {}
        return publish(
            self.store, f"mine/{step}/{name}", folder, run_id="mine", step=step, index=0, kind=kind,
            extra={"inputs": inputs, **extra},
        )  # fmt: skip


@pytest.fixture
def published(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return Published(tmp_path, shutil.copytree(two, tmp_path / "parl"))


def test_a_checkpoint_in_a_store_is_scored_on_its_runs_data(
    published: Published, tmp_path: Path, run: Run, scored: Callable[..., dict[str, Any]]
) -> None:
    before = sorted((tmp_path / "store").rglob("*"))
    scored(published.parl.uri, *suite("fact_qa"), "--tasks", 2)
    assert len(list((tmp_path / "tmp").rglob("*.safetensors"))) == 1, "the sub-agents are not needed"
    for given in (published.parl.uri, f"{published.parl.uri}/manifest.json", tmp_path / "store/mine/parl/0"):
        found = scored(given, *suite("fact_qa", "wide_search_swarm"), "--tasks", 8)
        assert [row["n"] for row in found["suites"]] == [3, 3]  # the data has no more
        assert "step parl of run mine, checkpoint 0" in found["checkpoint"] and "run's data" in found["tasks"]
    assert sorted((tmp_path / "store").rglob("*")) == before
    fetched = {path.name for path in (tmp_path / "tmp").rglob("*.safetensors")}
    assert fetched == {"model.safetensors"} and len(list((tmp_path / "tmp").rglob("*.safetensors"))) == 2

    code, out, err = run(published.parl.uri, *suite("fact_qa", "wide_search_single"), "--tasks", 6)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and notes == ["note: fact_qa: the run's data has 3 of 6 tasks"]

    (tmp_path / "store/mine/prepare_data/0/manifest.json").unlink()
    code, out, err = run(published.parl.uri, *suite("fact_qa"), "--tasks", 4)
    assert code == 0 and re.search(r"^ *fact_qa .* \d +4 ", out, re.M) and "note: its run's data cannot be read" in err


def test_a_released_int4_export_is_scored(
    published: Published, two: Path, tmp_path: Path, scored: Callable[..., dict[str, Any]]
) -> None:
    folder = shutil.copytree(two, tmp_path / "int4")
    quantise_checkpoint(folder)
    here = scored(folder, *suite("digit_count"), "--tasks", 8)
    export = published.publish("export", folder, name="e", **{EXPORTED_FROM: published.parl.uri})
    there = scored(export.uri, *suite("digit_count"), "--tasks", 8)
    assert here["suites"][0]["n"] == 8 and there["suites"][0]["n"] == 3
    assert here["suites"][0]["correct"] == sum(int(sample.answer) == 2 for sample in tasks_of("digit_count", 8))


def test_what_is_no_checkpoint_in_a_store_is_told(
    published: Published, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ENDPOINT_URL_S3", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for given, told in (
        (published.data.uri, "holds data, the output of prepare_data, and no checkpoint"),
        (f"{published.parl.uri}0", "is no checkpoint"),
        ("s3://bucket/run/parl/0", "127.0.0.1:9"),
    ):
        code, out, err = run(given, "--tasks", 4)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and re.search(told, err)
    (path,) = (tmp_path / "store/mine/parl/0").rglob("model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = run(published.parl.uri, "--tasks", 4)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "truncated" in err
