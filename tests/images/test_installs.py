"""Run the COPY and pip lines of the Dockerfiles, in order, in clean environments. What needs a GPU, the SGLang image or
apt is left out."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.images.dockerfile import ROOT, instructions, pip_installs, pip_words

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
# The environment that runs the tests must not help, except for pip's configuration.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))} | {"DS_BUILD_OPS": "0"}


class Build:
    """A folder in the place of an image, with `opt` as its WORKDIR and a virtual environment as its Python."""

    def __init__(self, folder: Path) -> None:
        self.workdir = folder / "opt"
        self.workdir.mkdir()
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        self._done: list[list[str]] = []

    def follow(self, name: str) -> None:
        """Run the COPY and pip instructions of a Dockerfile that have not been run yet."""
        for word, rest in instructions(name):
            if word == "COPY":
                self._copy(*shlex.split(rest))
            elif word == "RUN":
                for words in pip_words(rest):
                    if words not in self._done:
                        self._done.append(words)
                        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *words)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in the WORKDIR; the test fails if the program does."""
        done = subprocess.run(
            [self.bin / program, *arguments], cwd=self.workdir, capture_output=True, text=True, env=CLEAN
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        if target.startswith("/"):  # a program, which is tested by itself
            return
        for source in sources:
            origin, place = ROOT / source, self.workdir / target
            if origin.is_dir():
                shutil.copytree(origin, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            elif target.endswith(("/", ".")):
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, place)
            else:
                shutil.copy2(origin, place)


def test_pipeline_and_train(tmp_path: Path) -> None:
    # The first lines are the same, so that the registry keeps one copy of these layers; here they are done once.
    assert pip_installs("train")[:2] == pip_installs("pipeline")[:2]
    build = Build(tmp_path)
    build.follow("pipeline")
    assert "moonflow" in build.run("moonflow", "--help")
    assert "[joint_pretrain]" in build.run("moonflow", "run", "--profile", "tiny", "--dry-run")
    build.run("python", "-c", "import mlflow, pipelines.k25, components.serve.server, components.release.signing")
    begins = "from components.release import gitops; assert (gitops.MANIFESTS / 'overlays/prod').is_dir()"
    build.run("python", "-c", begins)
    for program in ("weed", "torchrun"):  # of manifests/base/storage and of the launcher
        assert (build.bin / program).is_file()
    names = build.run("pip", "list", "--format=freeze").lower()
    assert "pytest" not in names and "mypy==" not in names, "what only tests need is not in the image"

    build.follow("train")
    printed = build.run("python", "-c", "import deepspeed, torch; print(deepspeed.__version__)")
    version = printed.splitlines()[-1]  # after DeepSpeed's own log
    assert any(f"deepspeed=={version}" in words for words in pip_installs("train"))
    build.run("pip", "check")


SIGNED_AND_CHECKED = """
import pathlib, sys
from components.release import signing
from model.boundary.errors import MoonflowError
folder = pathlib.Path(sys.argv[1])
private, public = signing.key_pair(folder / "keys")
checkpoint = folder / "checkpoint"
checkpoint.mkdir()
(checkpoint / "config.json").write_text("{}")
signing.sign(checkpoint, private)
signing.check(checkpoint, public, "checkpoint")
(checkpoint / "config.json").write_text("[]")
try:
    signing.check(checkpoint, public, "checkpoint")
except MoonflowError:
    print("refused")
"""


def test_serve_verifies_with_what_it_installs(tmp_path: Path) -> None:
    build = Build(tmp_path)
    build.follow("serve")
    assert "--public-key" in build.run("python", "-m", "components.release.fetch", "--help")
    assert build.run("python", "-c", SIGNED_AND_CHECKED, str(tmp_path)) == "refused\n"
