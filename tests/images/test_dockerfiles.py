"""The Dockerfiles: what a linter says, and what it does not know to ask."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.images.dockerfile import NAMES, ROOT, copied, instructions, path, pip_installs

HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    said = subprocess.run(
        [HADOLINT, "--no-color", "--failure-threshold=style", path(name)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "hadolint ignore" not in path(name).read_text()


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install torch\nUSER root\n")
    said = subprocess.run([HADOLINT, "--no-color", bad], capture_output=True, text=True)
    assert said.returncode and {"DL3007", "DL3013", "DL3002"} <= set(re.findall(r"DL\d+", said.stdout))


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_an_argument_that_takes_a_digest(name: str) -> None:
    (argument, default), (word, image) = instructions(name)[:2]
    assert (argument, word, image) == ("ARG", "FROM", "${BASE_IMAGE}")
    base = default.removeprefix("BASE_IMAGE=")
    assert re.fullmatch(r"[a-z/]+:[\w.-]*\d[\w.-]*", base), "a tag that names a version"
    assert f"--build-arg BASE_IMAGE={base}@sha256:<digest>" in path(name).read_text(), "tells how to pin it"


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_numbered_user_and_says_what_it_is(name: str) -> None:
    steps = instructions(name)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["10001"], "Kubernetes can check runAsNonRoot for a number only"
    assert not [rest for word, rest in steps[steps.index(("USER", "10001")) :] if word in ("RUN", "COPY", "ADD")]
    labels = " ".join(rest for word, rest in steps if word == "LABEL")
    for key in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{key}=" in labels, key
    assert f'title="moonflow-{name}"' in labels


@pytest.mark.parametrize("name", NAMES)
def test_dependencies_come_before_what_changes_daily(name: str) -> None:
    order = [(word, rest) for word, rest in instructions(name) if word in ("COPY", "RUN", "ARG")]
    code = next(i for i, (word, rest) in enumerate(order) if word == "COPY" and rest.startswith("components"))
    third_party = [i for i, (word, rest) in enumerate(order) if word == "RUN" and "--constraint" in rest]
    commit = next(i for i, (word, rest) in enumerate(order) if rest.startswith("GIT_COMMIT"))
    assert max(third_party) < code < commit, "a commit must not install everything again"


@pytest.mark.parametrize("name", NAMES)
def test_copies_what_exists_and_what_the_build_context_holds(name: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines(), "an allow-list"
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert any(source == kept or source.startswith(f"{kept}/") for kept in allowed), source
    assert "." not in copied(name)


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_asked_for_or_kept(name: str) -> None:
    for word, rest in instructions(name):
        if word in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|secret|password|_key|credential", rest), rest


@pytest.mark.parametrize("name", NAMES)
def test_pins_are_those_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [*project["dependencies"], *(row for extra in project["optional-dependencies"].values() for row in extra)]
    pins = dict(row.split("==") for row in rows)
    given = dict(word.split("==") for words in pip_installs(name) for word in words if "==" in word)
    assert given and given == {package: pins[package] for package in given}
    if name == "serve":
        assert f"lmsysorg/sglang:v{pins['sglang']}" in path(name).read_text(), "the engine that the tests know"


def test_only_the_server_has_a_health_check() -> None:
    checked = {name for name in NAMES for word, _ in instructions(name) if word == "HEALTHCHECK"}
    assert checked == {"serve"}


@pytest.mark.parametrize("name", ["pipeline", "train"])
def test_kernels_are_compiled_at_build_next_to_sources_whose_times_a_layer_keeps(name: str) -> None:
    steps = instructions(name)
    (compiling,) = [
        i for i, (word, rest) in enumerate(steps) if word == "RUN" and "model.rollout.compile_kernels" in rest
    ]
    assert max(i for i, (word, _) in enumerate(steps) if word == "COPY") < compiling < steps.index(("USER", "10001"))
    first, then = steps[compiling][1].split(" && ")
    assert re.search(r"find model/network/kernels .*touch --date=[\dT:-]+Z ", first), "a layer rounds times to seconds"
    assert then.endswith("python -m model.rollout.compile_kernels") and "NUMBA_CACHE_DIR" not in steps[compiling][1]
    assert "**/__pycache__" in (ROOT / ".dockerignore").read_text().splitlines(), "code of the developer's machine"
