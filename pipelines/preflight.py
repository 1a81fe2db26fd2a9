"""What a run on this machine needs of the world outside of its profile, looked at before its first step.

It reads only and takes a second or two. What a value says by itself is checked by the steps' schemas.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from components.promote import overlay
from components.promote.git import clone, has_commits, is_remote
from components.promote.gitops import MANIFESTS
from components.runtime.config import EpisodesConfig
from model.errors import MoonflowError
from model.rl.tools.sandbox import Sandbox
from pipelines.profile import Profile


def preflight(profile: Profile, repository: str, *, begun: bool = False) -> None:
    """Check that the run's sources, what confines its programs and the place of its promotion are there.

    Args:
        repository: the GitOps repository that promote will write to.
        begun: an earlier call has; its data may be prepared, and then the sources are needed no more.

    Raises:
        MoonflowError: naming what is missing and what to do.
    """
    if not begun:
        _sources(profile)
    _sandbox(profile)
    if "promote" in profile.steps:
        _overlay(repository, profile.step("promote").model_dump()["environment"])


def _sources(profile: Profile) -> None:
    if text := profile.step("prepare_data").model_dump()["sources"]:
        # These bring torch: only who has data of their own waits for it.
        from components.runtime.own_data import local_folder
        from model.data.own import parse_sources

        for source in parse_sources(text):
            # An object store is asked by prepare_data itself, the first step, before it makes anything.
            if (folder := local_folder(source.uri)) is not None and not os.path.isdir(folder):
                raise MoonflowError(
                    f"[prepare_data] sources: {source.name} is to lie in {source.uri}, which is no folder: name one "
                    "with .tar shards or with images and texts, or s3://..."
                )


def _sandbox(profile: Profile) -> None:
    if any(isinstance(config, EpisodesConfig) and config.sandbox == "strict" for config in profile.steps.values()):
        with Sandbox() as sandbox:
            _ = sandbox.walls  # raises where programs would be refused


def _overlay(repository: str, environment: str) -> None:
    if shutil.which("git") is None:
        raise MoonflowError("git is missing, and promote commits with it: install it (`moonflow doctor` says how)")
    place = Path(repository)
    if not is_remote(repository) and not place.exists():
        overlay.path_of(MANIFESTS, environment)  # promote begins the repository with these
        return
    if not is_remote(repository) and not os.access(place, os.W_OK):
        raise MoonflowError(f"the GitOps repository {repository} cannot be written: promote has to commit there")
    with clone(repository) as folder:
        overlay.path_of(folder if has_commits(folder) else MANIFESTS, environment)
