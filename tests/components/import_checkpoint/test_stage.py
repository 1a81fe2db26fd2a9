"""import_checkpoint from every kind of source: what it publishes, what it records, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from components.import_checkpoint import sources, stage
from components.import_checkpoint.config import LAID_OUT, Config
from components.promote.description import describe_version
from components.promote.export import export
from components.release import signing
from components.release.fetch import bring
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext, run_step
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.codec.tokenizer import Tokenizer
from tests.checkpoint import released_source
from tests.corpus import corpus
from tests.counted import Stage, counting
from tests.tiny_folders import write_checkpoint

LICENCE = "A licence. Keep this text.\n"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's form, with a licence and with files that a checkpoint of ours does not have."""
    folder = write_checkpoint(tmp_path_factory.mktemp("foreign") / "model", seed=7)
    (folder / "training_state.json").unlink(missing_ok=True)
    for path in folder.glob("optimizer-*"):
        path.unlink()
    (folder / "LICENSE").write_text(LICENCE)
    (folder / "README.md").write_text("A model.\n")
    (folder / "figures").mkdir()
    (folder / "figures" / "loss.png").write_bytes(b"x")
    return folder


@pytest.fixture(autouse=True)
def folder_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a folder, and no MLflow; tests marked `services` have the real ones."""
    if request.node.get_closest_marker("services"):
        return
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_", "MOONFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "post")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))


def imported(source: object, **config: Any) -> Manifest:
    return run_step("import_checkpoint", {"source": str(source), "revision": "", **config})


def same_weights(manifest: Manifest, folder: Path, at: Path) -> bool:
    """Whether a manifest's model is the one in ``folder``, weight for weight."""
    manifests.fetch(open_store(), manifest.uri, at)
    ours, theirs = load_model(at).state_dict(), load_model(folder).state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def digest_of(read: Mapping[str, str]) -> str:
    """What `sha256sum` prints for the files, hashed again."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(read.items())).encode()).hexdigest()


def publish(folder: Path, step: str, index: int, **fields: Any) -> Manifest:
    where = {"run_id": "base", "step": step, "index": index, "kind": "checkpoint", **fields}
    return manifests.publish(open_store(), f"base/{step}/{index}", folder, **where)


def test_a_folder_keeps_its_weights_its_licence_and_its_digests(foreign: Path, tmp_path: Path) -> None:
    made = imported(foreign)
    assert made.kind == "checkpoint" and made.complete and made.training_state == ()
    assert made.tokenizer_sha256 == hashlib.sha256((foreign / "tokenizer.json").read_bytes()).hexdigest()
    assert same_weights(made, foreign, tmp_path / "at")
    assert (tmp_path / "at" / "LICENSE").read_text() == LICENCE
    origin = made.extra["origin"]
    assert origin["source"] == str(foreign) and origin["licences"] == ["LICENSE"]
    read = made.extra["files_read"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert read[name] == hashlib.sha256((foreign / name).read_bytes()).hexdigest()
    assert origin["sha256"] == digest_of(read)
    assert "warnings" not in made.extra
    progress = json.loads((tmp_path / "run" / "progress" / "import_checkpoint.json").read_text())
    assert progress["done"] == progress["total"] == 1, "its one file of weights"


def test_a_folder_without_a_licence_is_imported_with_a_warning(foreign: Path, tmp_path: Path) -> None:
    shutil.copytree(foreign, tmp_path / "bare")
    (tmp_path / "bare" / "LICENSE").unlink()
    made = imported(tmp_path / "bare")
    assert made.extra["origin"]["licences"] == []
    assert "no licence" in made.extra["warnings"][0]


def test_a_snapshot_in_the_cache_of_the_hub_is_imported(foreign: Path, tmp_path: Path) -> None:
    """Its files are links to the blobs."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in filter(Path.is_file, foreign.iterdir()):
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blobs / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    made = imported(snapshot)
    assert made.extra["origin"]["licences"] == ["LICENSE"]
    assert same_weights(made, foreign, tmp_path / "at")


def test_groups_that_a_release_in_int4_changes_are_a_warning(tmp_path: Path) -> None:
    drawn = released_source.draw("int4")
    name = next(name for name in drawn.tensors if name.endswith("_packed"))
    drawn.tensors[name].fill_(0x11111111)  # level -7, the largest of a group
    drawn.tensors[name][0] = 0x55555555  # level -3, in the 2 groups of a row
    made = imported(released_source.write(tmp_path / "int4", drawn, more=()))
    terms, groups = made.extra["warnings"]
    assert "holds no licence file" in terms and ": 2 groups of INT4 have another largest level than 7" in groups


@pytest.mark.parametrize("linked", [False, True])
def test_a_manifest_of_another_program_next_to_a_config_is_not_ours(
    foreign: Path, tmp_path: Path, linked: bool
) -> None:
    folder = shutil.copytree(foreign, tmp_path / "app")
    (folder / "web.json").write_text('{"name": "an app", "icons": []}')
    if linked:
        (folder / "manifest.json").symlink_to("web.json")
    else:
        (folder / "web.json").rename(folder / "manifest.json")
    made = imported(folder)
    assert made.extra["origin"]["revision"] == "" and same_weights(made, foreign, tmp_path / "at")


def test_a_damaged_manifest_of_a_step_is_passed_over(foreign: Path, tmp_path: Path) -> None:
    publish(foreign, "mid_train", 0)
    publish(foreign, "mid_train", 1)
    open_store().put("base/mid_train/1/manifest.json", b"{")
    assert imported(f"file://{tmp_path}/store/base").extra["origin"]["revision"].endswith("/base/mid_train/0")
    open_store().put("base/mid_train/0/manifest.json", b"{")
    with pytest.raises(MoonflowError, match=r"/base/mid_train/1/manifest.json is damaged"):
        sources.find(f"file://{tmp_path}/store/base", "", tmp_path / "work")


def test_what_a_manifest_of_others_says_of_itself_is_no_address_and_no_text(foreign: Path, tmp_path: Path) -> None:
    made = publish(foreign, "mid_train", 0)
    path = tmp_path / "store" / "base" / "mid_train" / "0" / "manifest.json"
    lie = "s3://elsewhere\n\nApproved-by: somebody"
    path.write_bytes(made.model_copy(update={"uri": lie}).canonical())
    origin = imported(f"file://{tmp_path}/store/base").extra["origin"]
    assert origin["revision"] == f"file://{tmp_path}/store/base/mid_train/0"

    for origin in ("text", ["a"], {"source": 1}, {"source": "a", "sha256": "b"}, {"source": "a" * 5000}):
        path.write_bytes(made.model_copy(update={"extra": {"origin": origin}}).canonical())
        with pytest.raises(MoonflowError, match=r"manifest at file://.*/mid_train/0 is not of ours \(origin") as caught:
            sources.find(f"file://{tmp_path}/store/base", "", tmp_path / "work")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("below", "index"), [("/mid_train/1", 1), ("/mid_train/1/manifest.json", 1), ("/mid_train", 1),
                                              ("", 1)])  # fmt: skip
def test_a_manifest_a_step_and_a_run_name_their_newest_complete_checkpoint(
    foreign: Path, tmp_path: Path, below: str, index: int
) -> None:
    write_checkpoint(tmp_path / "older", seed=1)
    publish(tmp_path / "older", "joint_pretrain", 0, created_at="2026-01-01T00:00:00+00:00")
    publish(tmp_path / "older", "mid_train", 0, created_at="2026-01-02T00:00:00+00:00")
    wanted = publish(foreign, "mid_train", 1, created_at="2026-01-03T00:00:00+00:00", tokens_seen=5)
    publish(tmp_path / "older", "mid_train", 2, created_at="2026-01-04T00:00:00+00:00", complete=False)
    made = imported(f"file://{tmp_path}/store/base{below}")
    origin = made.extra["origin"]
    assert origin["revision"].endswith(f"/base/mid_train/{index}") and origin["sha256"] == wanted.sha256
    assert origin["licences"] == ["LICENSE"]
    assert same_weights(made, foreign, tmp_path / "at")


def test_of_two_steps_that_ended_in_one_second_the_later_one_counts_and_any_step_can_be_named(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "2026-01-01T00:00:00+00:00"
    for step in ("joint_rl", "parl", "mid_train", "fusion_arm-early-0"):
        publish(foreign, step, 0, created_at=at)
    assert imported(f"file://{tmp_path}/store/base").extra["origin"]["revision"].endswith("/base/parl/0")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "arm")
    arm = imported(f"file://{tmp_path}/store/base/fusion_arm-early-0")
    assert arm.extra["origin"]["revision"].endswith("/base/fusion_arm-early-0/0")


def test_training_state_is_left_behind(foreign: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(foreign, tmp_path / "trained")
    (folder / "training_state.json").write_text("{}")
    publish(folder, "mid_train", 0, training_state=("optimizer",))
    made = imported(f"file://{tmp_path}/store/base")
    assert made.training_state == () and "training_state.json" not in [file.name for file in made.files]


def test_a_folder_that_was_fetched_is_checked_against_its_manifest(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the endpoint's init container and `moonflow run` lay it out: plain names, the manifest next to them."""
    wanted = publish(foreign, "parl", 0)
    bring(open_store(), wanted.uri, wanted.sha256, tmp_path / "fetched")
    monkeypatch.setenv(LAID_OUT, str(tmp_path / "fetched"))
    made = imported("runs/base")
    assert made.extra["origin"] | {"revision": ""} == {
        "source": "runs/base", "revision": "", "sha256": wanted.sha256, "licences": ["LICENSE"],
    }  # fmt: skip
    with (tmp_path / "fetched" / "config.json").open("a") as stream:
        stream.write(" ")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "again")
    with pytest.raises(MoonflowError, match=r"config\.json is damaged: .*expected"):
        imported("runs/base")


def test_what_is_made_from_it_repeats_the_origin_and_a_release_carries_the_licence(
    foreign: Path, tmp_path: Path, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = imported(foreign)
    define(counting())
    made = run_step("counted", {}, {"parent": base.uri})
    assert made.extra["origin"] == base.extra["origin"]

    key, public = signing.key_pair(tmp_path / "keys")
    released = export(open_store(), base, tmp_path / "export", key)
    bring(open_store(), released.uri, released.sha256, tmp_path / "served", public)
    assert (tmp_path / "served" / "LICENSE").read_text() == LICENCE
    stated = json.loads((tmp_path / "served" / "release.json").read_text())
    assert stated["extra"]["origin"] == base.extra["origin"], "it is signed"
    text = describe_version(base, made, "local", "c0ffee")
    assert f"- started from {foreign}, sha256 {base.extra['origin']['sha256']}, licence: LICENSE" in text

    # Another run that starts from the release knows both.
    monkeypatch.setenv("MOONFLOW_RUN_ID", "second")
    second = imported(released.uri)
    assert second.extra["origin"]["from"] == base.extra["origin"]
    assert second.extra["origin"]["licences"] == ["LICENSE"]


@pytest.mark.slow
def test_data_and_training_keep_tokenizer_image_settings_and_licence(foreign: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(foreign, tmp_path / "other")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["media_proc_cfg"]["in_patch_limit"] = 64
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    base = imported(folder)
    small = {"text_samples": 100, "image_samples": 100, "long_samples": 100, "eval_samples": 1, "processes": 1}
    data = run_step("prepare_data", {**small, "tokenizer_ranks": 300}, {"tokenizer": base.uri})
    assert data.tokenizer_sha256 == base.tokenizer_sha256, "no other tokenizer is trained"
    manifests.fetch(open_store(), data.uri, tmp_path / "data", ["index.json", "LICENSE"])
    assert json.loads((tmp_path / "data" / "index.json").read_text())["image"]["in_patch_limit"] == 64

    config = {"steps": 1, "rows": 1, "tokens_per_row": 256}
    trained = run_step("zero_vision_sft", config, {"data": data.uri, "parent": base.uri})
    assert trained.extra["origin"] == data.extra["origin"] == base.extra["origin"]
    manifests.fetch(open_store(), trained.uri, tmp_path / "sft", ["preprocessor_config.json", "LICENSE"])
    kept = json.loads((tmp_path / "sft" / "preprocessor_config.json").read_text())
    assert kept["media_proc_cfg"]["in_patch_limit"] == 64
    assert (tmp_path / "sft" / "LICENSE").read_text() == LICENCE


def test_an_attempt_that_died_at_any_point_ends_as_one(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for thing, name in ((stage, "is_licence"), (StepContext, "publish")):
        with monkeypatch.context() as patch:
            patch.setattr(thing, name, dies)
            with pytest.raises(KeyboardInterrupt):
                imported(foreign)
        assert not list(open_store().list("post/import_checkpoint/"))
    with monkeypatch.context() as patch:
        patch.setattr(type(open_store()), "put_new", dies)  # all files are there, their manifest is not
        with pytest.raises(KeyboardInterrupt):
            imported(foreign)
    assert manifests.find(open_store(), "post/import_checkpoint/0") is None
    made = imported(foreign)
    assert same_weights(made, foreign, tmp_path / "at")
    assert imported(foreign).sha256 == made.sha256, "finished work is not done again"
    left = {key.rpartition("/")[2] for key in open_store().list("post/import_checkpoint/")}
    assert left == {file.name for file in made.files} | {"manifest.json"}, "nothing of the dead attempts"
    with pytest.raises(MoonflowError, match="other parameters"):
        imported(f"{foreign}/")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "import_checkpoint.source is empty"),
        ("{tmp}/nowhere", "there is no folder"),
        ("c" * 300, "there is no folder"),
        ("{tmp}", "holds no checkpoint"),
        ("file://{tmp}/nowhere", "holds no checkpoint"),
        ("file://{tmp}/store/base/prepare_data", "holds no checkpoint"),
        ("file://{tmp}/store/base/prepare_data/0", r"what prepare_data wrote \(data\)"),
        ("{tmp}/half", r"half has no preprocessor_config.json"),
        ("{tmp}/mixed", "mixes files of two models"),
    ],
)
def test_a_source_that_cannot_be_imported_is_one_line(foreign: Path, tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "half").mkdir()
    shutil.copy(foreign / "config.json", tmp_path / "half")
    shutil.copytree(foreign, tmp_path / "mixed")
    Tokenizer.train(corpus(), 300).save(tmp_path / "mixed")
    publish(foreign, "prepare_data", 0, kind="data")
    with pytest.raises(MoonflowError, match=told) as caught:
        imported(source.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"source": "hf://name"}, "hf://owner/name"),
        ({"source": "https://host/model"}, "begins with s3://, file:// or hf://"),
        ({"source": "s3://"}, "not an object-store address"),
        ({"source": "runs/base", "revision": "main"}, "revision 'main' is for hf:// sources only"),
    ],
)
def test_a_source_that_is_written_wrong_is_told_before_anything_runs(values: dict[str, str], told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        Config.parse(values, "here")


@pytest.mark.services
def test_from_an_object_store(
    foreign: Path, tmp_path: Path, step_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    base = f"{step_environment}-base"
    fields: dict[str, Any] = {"run_id": base, "step": "mid_train", "index": 3, "kind": "checkpoint"}
    wanted = manifests.publish(store, f"{base}/mid_train/3", foreign, **fields)
    for path in foreign.rglob("*"):
        if path.is_file():
            store.upload(path, f"{base}/hub/{path.relative_to(foreign)}")

    made = imported(store.uri(base))
    assert made.extra["origin"]["revision"] == wanted.uri and made.extra["origin"]["sha256"] == wanted.sha256
    assert same_weights(made, foreign, tmp_path / "manifest")

    monkeypatch.setenv("MOONFLOW_RUN_ID", f"{step_environment}-folder")
    made = imported(store.uri(f"{base}/hub"))
    assert made.extra["origin"]["licences"] == ["LICENSE"] and "README.md" not in made.extra["files_read"]
    assert same_weights(made, foreign, tmp_path / "folder")
    with pytest.raises(MoonflowError, match="holds no checkpoint"):
        monkeypatch.setenv("MOONFLOW_RUN_ID", f"{step_environment}-none")
        imported(store.uri("nothing/here"))
