"""The overlay: foreign text in, the smallest change out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.release import overlay
from components.release.gitops import MANIFESTS
from components.release.overlay import DEEPEST, LARGEST, NOTHING, Change
from model.boundary.errors import MoonflowError

DIGEST, IMAGE = "a" * 64, "sha256:" + "1" * 64
CHANGE = Change("s3://b/new: 1", "b" * 64, kfp_run_id="kfp-1")
GOOD = f"""\
kind: Kustomization
configMapGenerator:
- name: checkpoint
  literals:
  - CHECKPOINT_URI=s3://b/old
  - CHECKPOINT_SHA256={DIGEST}
  - KFP_RUN_ID=none
  - MLFLOW_RUN_ID=none
images:
- name: moonflow-serve
  newTag: "0.1.0"
"""
CHANGED = GOOD.replace("CHECKPOINT_URI=s3://b/old", '"CHECKPOINT_URI=s3://b/new: 1"')
CHANGED = CHANGED.replace(DIGEST, "b" * 64).replace("KFP_RUN_ID=none", "KFP_RUN_ID=kfp-1")


def place(clone: Path, data: bytes | str, environment: str = "prod") -> Path:
    path = clone / "overlays" / environment / "kustomization.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def without(line: str) -> str:
    return "".join(row for row in GOOD.splitlines(keepends=True) if line not in row)


BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n + 1}: &a{n + 1}\n  <<: [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [
    ("", "is empty: restore it"),
    ("# only a comment\n", "is empty: restore it"),
    ("- a\n- b\n", "line 1: the file is not a mapping"),
    ("just text", "line 1: the file is not a mapping"),
    ("a:\n\t- b\n", r"is not YAML \(.*line 2\)"),
    ("a: [1, 2\n", "is not YAML"),
    ("a: *nothing\n", "is not YAML .*undefined alias"),
    (b"a: \x00\n", "is not YAML .*control characters"),
    (b"\x7fELF\x02\x01\x01\x00\xff", "is not UTF-8"),
    ("ä: 1\n".encode("latin-1"), r"is not UTF-8 \(byte 0\): save it as UTF-8"),
    (GOOD.encode("utf-16"), "is not UTF-8"),
    (f"{GOOD}---\n{GOOD}", "is not YAML .*single document"),
    (f"{GOOD}images: []\n", "has the key images twice, in line 12 again"),
    (GOOD.replace("KFP_RUN_ID=none", "CHECKPOINT_URI=s3://b/c"), "has the literal CHECKPOINT_URI twice, in line 7"),
    (GOOD.replace("Kustomization", "Deployment"), "is of the kind Deployment"),
    (GOOD.replace("name: checkpoint", "name: other"), "has no configMapGenerator named checkpoint: restore it"),
    (GOOD.replace("images:\n", "").replace("moonflow-serve", "checkpoint"), "2 configMapGenerator named checkpoint"),
    ("configMapGenerator: {name: checkpoint}\n", "has configMapGenerator that is not a list, in line 1"),
    ("configMapGenerator: [checkpoint]\n", "an entry of configMapGenerator is not a mapping"),
    ("configMapGenerator:\n- name: checkpoint\n", "has no list of literals"),
    ("configMapGenerator:\n- name: checkpoint\n  literals: {a: b}\n", "has no list of literals"),
    (without("CHECKPOINT_URI"), "lacks the literal CHECKPOINT_URI in checkpoint: add - CHECKPOINT_URI=none"),
    (without("CHECKPOINT_SHA256"), "lacks the literal CHECKPOINT_SHA256"),
    (GOOD.replace("KFP_RUN_ID=none", "17"), "line 7: a literal of checkpoint is not text"),
    (GOOD.replace("KFP_RUN_ID=none", "KFP_RUN_ID: none"), "line 7: a literal of checkpoint is not text"),
    (GOOD.replace("KFP_RUN_ID=none", "KFP_RUN_ID"), "has the literal 'KFP_RUN_ID' in line 7: write KEY=VALUE"),
    (GOOD.replace(DIGEST, "A" * 64), "has CHECKPOINT_SHA256=AAAA.*write 64 hexadecimal digits"),
    (GOOD.replace(DIGEST, "none"), "has CHECKPOINT_SHA256=none"),
    (GOOD.replace("s3://b/old", "none"), "has CHECKPOINT_URI=none"),
    (GOOD.replace("- CHECKPOINT_URI=s3://b/old", '- "CHECKPOINT_URI=s3://b/\\e[31m\\n"'), r"has CHECKPOINT_URI=s3://b/\?\["),
    ('!!python/object/apply:os.system ["touch owned"]\n', "the file is not a mapping"),
    (f"x: !!python/object/apply:os.system [touch owned]\n{GOOD}", "has the tag tag:yaml.org,2002:python.* in line 1"),
    (f"x: !Vault abc\n{GOOD}", "has the tag !Vault in line 1: leave it out"),
    (f"? [a]\n: b\n{GOOD}", "has a key that is not text in line 1"),
    ("[" * 100_000, f"has more than {DEEPEST} levels"),
    ("{a: " * 50_000, f"has more than {DEEPEST} levels"),
    (f"# {'x' * LARGEST}\n{GOOD}", f"has more than {LARGEST} bytes"),
])  # fmt: skip
def test_what_is_not_an_overlay_is_told_in_one_line(text: str | bytes, says: str, tmp_path: Path):
    path = place(tmp_path, text)
    before = path.read_bytes()
    for use in (overlay.read, lambda path: overlay.write(path, CHANGE)):
        with pytest.raises(MoonflowError, match=says) as caught:
            use(path)
        assert str(caught.value).startswith("overlays/prod/kustomization.yaml in the GitOps repository ")
        assert "\n" not in str(caught.value) and str(caught.value).isprintable()
        assert path.read_bytes() == before and not Path("owned").exists()


@pytest.mark.parametrize(("before", "after"), [
    (GOOD, CHANGED),
    (GOOD.replace("\n", "\r\n"), CHANGED.replace("\n", "\r\n")),
    (f"\ufeff{GOOD}", f"\ufeff{CHANGED}"),
    (f"%YAML 1.1\n---\n{GOOD}...\n", f"%YAML 1.1\n---\n{CHANGED}...\n"),
    (GOOD.rstrip(), CHANGED.rstrip()),
    (f"# größer 😀\n\n\n{GOOD}", f"# größer 😀\n\n\n{CHANGED}"),
    (GOOD.replace("  - ", "      -   "), CHANGED.replace("  - ", "      -   ")),
    (GOOD.replace("KFP_RUN_ID=none", "KFP_RUN_ID=none  # of Kubeflow\n  # and\n  - OWN=1"),
     CHANGED.replace("KFP_RUN_ID=kfp-1", "KFP_RUN_ID=kfp-1  # of Kubeflow\n  # and\n  - OWN=1")),
    (f"{BOMB}{GOOD}", f"{BOMB}{CHANGED}"),
    (f"self: &self [*self]\n{GOOD}", f"self: &self [*self]\n{CHANGED}"),
    (f"{GOOD}patches: [{{patch: '- op: add\n\n    x'}}]\n", f"{CHANGED}patches: [{{patch: '- op: add\n\n    x'}}]\n"),
    (without("kind"), CHANGED.removeprefix("kind: Kustomization\n")),
])  # fmt: skip
def test_a_promotion_changes_its_values_and_not_a_byte_else(before: str, after: str, tmp_path: Path):
    path = place(tmp_path, before)
    assert overlay.read(path) == ("s3://b/old", DIGEST)
    overlay.write(path, CHANGE)
    assert path.read_bytes().decode() == after
    assert overlay.read(path) == CHANGE.served


def test_literals_in_one_line_are_changed_there(tmp_path: Path):
    row = "[CHECKPOINT_URI=none, 'CHECKPOINT_SHA256=none', KFP_RUN_ID=none, MLFLOW_RUN_ID=none]"
    path = place(tmp_path, f"configMapGenerator: [{{name: checkpoint, literals: {row}}}]\n")
    assert overlay.read(path) == NOTHING
    overlay.write(path, Change("s3://b/c", DIGEST))
    changed = f"[CHECKPOINT_URI=s3://b/c, CHECKPOINT_SHA256={DIGEST}, KFP_RUN_ID=none, MLFLOW_RUN_ID=none]"
    assert path.read_text() == f"configMapGenerator: [{{name: checkpoint, literals: {changed}}}]\n"


def test_a_literal_over_several_lines_is_refused_and_left(tmp_path: Path):
    path = place(tmp_path, GOOD.replace("KFP_RUN_ID=none", "|\n    KFP_RUN_ID=none"))
    before = path.read_bytes()
    with pytest.raises(MoonflowError, match="in the GitOps repository"):
        overlay.write(path, CHANGE)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("image", "pinned"), [
    ('- name: moonflow-serve\n  newTag: "0.1.0"\n', f"- name: moonflow-serve\n  digest: {IMAGE}\n"),
    ('- name: moonflow-serve\n  newTag:  # the last\n    # good one\n    "0.1.0"\n',
     f"- name: moonflow-serve\n  digest:  # the last\n    # good one\n    {IMAGE}\n"),
    ("- newTag: v1  # now\n  name: moonflow-serve\n", f"- digest: {IMAGE}  # now\n  name: moonflow-serve\n"),
    (f"- name: moonflow-serve\n  digest: sha256:{'0' * 64}\n", f"- name: moonflow-serve\n  digest: {IMAGE}\n"),
    ("- name: moonflow-serve # ours\n  newName: r/s\n",
     f"- digest: {IMAGE}\n  name: moonflow-serve # ours\n  newName: r/s\n"),
    ("- {name: moonflow-serve}\n", f"- {{digest: {IMAGE}, name: moonflow-serve}}\n"),
    ("- name: other\n  newTag: v1\n- name: moonflow-serve\n  newTag: v2\n",
     f"- name: other\n  newTag: v1\n- name: moonflow-serve\n  digest: {IMAGE}\n"),
])  # fmt: skip
def test_an_image_is_pinned_in_place_of_its_tag(image: str, pinned: str, tmp_path: Path):
    head = GOOD[: GOOD.index("- name: moonflow-serve")]
    path = place(tmp_path, head + image)
    overlay.write(path, Change("s3://b/old", DIGEST, image_digest=IMAGE))
    assert path.read_text() == head + pinned


@pytest.mark.parametrize(("image", "says"), [
    ("- name: other\n", "has no images named moonflow-serve: restore it"),
    ("- name: moonflow-serve\n- name: moonflow-serve\n", "has 2 images named moonflow-serve: keep one"),
    (f"- name: moonflow-serve\n  newTag: v1\n  digest: {IMAGE}\n", "a newTag and a digest: leave the newTag out"),
])  # fmt: skip
def test_an_image_that_cannot_be_pinned_is_told(image: str, says: str, tmp_path: Path):
    path = place(tmp_path, GOOD[: GOOD.index("- name: moonflow-serve")] + image)
    with pytest.raises(MoonflowError, match=says):
        overlay.write(path, Change("s3://b/old", DIGEST, image_digest=IMAGE))


@pytest.mark.parametrize("name", ["", "..", "../../etc", "/etc", "prod/platform", "-prod", "prod\n", "pröd", ".git"])
def test_an_environment_is_one_plain_name(name: str, tmp_path: Path):
    place(tmp_path, GOOD)
    with pytest.raises(MoonflowError, match="is not an environment: give the name of a folder in overlays/") as caught:
        overlay.path_of(tmp_path, name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("link", ["overlays", "overlays/prod", "overlays/prod/kustomization.yaml"])
def test_a_symlink_on_the_way_is_refused(link: str, tmp_path: Path):
    outside, clone = tmp_path / "outside", tmp_path / "clone"
    file = place(outside, GOOD)
    place(clone, GOOD)
    moved = clone / link
    moved.rename(tmp_path / "moved")
    os.symlink(outside / link, moved)
    with pytest.raises(MoonflowError, match=f"{link} in the GitOps repository is a symbolic link") as caught:
        overlay.path_of(clone, "prod")
    assert str(outside) not in str(caught.value)
    assert file.read_text() == GOOD


def test_what_is_no_file_is_no_overlay(tmp_path: Path):
    place(tmp_path, GOOD, "dev")
    (tmp_path / "overlays" / "prod" / "kustomization.yaml").mkdir(parents=True)
    with pytest.raises(MoonflowError, match="has no overlay 'prod'; it has: dev, prod"):
        overlay.path_of(tmp_path, "prod")


NAMES = ("plain", "a#b", "a #b", "a?b=c&d", "100%", "a%20b", "a b", "a: b", "ü-漢", "'a'", '"a"', "$(X)")


@pytest.mark.parametrize("name", NAMES)
def test_an_address_comes_back_literally(tmp_path: Path, name: str) -> None:
    path = place(tmp_path, GOOD)
    uri = f"s3://moonflow/runs/{name}/export/1"
    overlay.write(path, Change(uri, "a" * 64))
    assert overlay.read(path) == (uri, "a" * 64)


@pytest.mark.parametrize("environment", ["local", "dev", "prod"])
def test_a_promotion_changes_five_lines_of_an_overlay_of_ours_and_no_comment(environment: str, tmp_path: Path) -> None:
    before = (MANIFESTS / "overlays" / environment / "kustomization.yaml").read_text()
    path = place(tmp_path, before, environment)
    image = IMAGE if "moonflow-serve" in before.partition("images:")[2] else ""
    overlay.write(path, Change("s3://b/c", DIGEST, "kfp-1", "mlflow-1", image))
    rows, after = before.splitlines(), path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(rows, after, strict=True) if old != new]
    assert len(changed) == 4 + bool(image)
    assert all("#" not in old + new for old, new in changed) and before.count("#") == path.read_text().count("#") > 0
