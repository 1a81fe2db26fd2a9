"""Checks before the first step of a local run: what it starts from, its data, the user's tasks, the sandbox and the
GitOps repository.

They change nothing and take a second or two. The values themselves are checked by the steps' schemas.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from components.release import overlay
from components.release.git import clone, has_commits, is_remote
from components.release.gitops import MANIFESTS
from components.runtime.checkpoints.manifest import MANIFEST
from components.runtime.config import EpisodesConfig
from components.runtime.steps import IMPORTED
from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import CONFIG
from model.rl.tasks.names import parse_task_shares, parse_tasks
from model.rl.tools.sandbox import Sandbox
from pipelines.profile import Profile
from pipelines.source_run import local_source, run_and_step, source_of


def preflight(profile: Profile, repository: str, *, begun: bool = False) -> None:
    """Check that what a run needs is there: checkpoint, sources, the user's tasks, sandbox, overlay of its promotion.

    Args:
        repository: the GitOps repository that promote will write to.
        begun: whether an earlier call began the run; it may have its checkpoint and data, and needs no sources then.

    Raises:
        MoonflowError: something is missing; the line says what to do.
    """
    if not begun:
        check_inputs(profile)
    _tasks(profile)
    _sandbox(profile)
    if "promote" in profile.steps:
        _overlay(repository, profile.step("promote").model_dump()["environment"])


def check_inputs(profile: Profile) -> None:
    """Check that the checkpoint and the data that a new run starts from are there. MoonflowError if one is not."""
    _checkpoint(profile)
    _sources(profile)


def _checkpoint(profile: Profile) -> None:
    if IMPORTED in profile.steps and not source_of(profile):
        raise MoonflowError(
            "import_checkpoint.source is empty: name the checkpoint to start from, for example --set "
            "import_checkpoint.source=runs/tiny"
        )
    if (path := local_source(profile)) is None or run_and_step(path) is not None:
        return
    if not os.path.isdir(path):
        raise MoonflowError(
            f"import_checkpoint.source names {path}, which is neither a folder nor a run's, runs/NAME[/STEP]: name one "
            f"with {CONFIG}, a run's folder, or an address"
        )
    # A checkpoint in Hugging Face's form; or one of ours, a step or a run in a store that is a folder.
    if not any(next(path.glob(name), None) for name in (CONFIG, MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}")):
        raise MoonflowError(
            f"import_checkpoint.source names {path}, which holds no checkpoint: name a folder with {CONFIG}, or a run's"
        )


def _sources(profile: Profile) -> None:
    if text := profile.step("prepare_data").model_dump()["sources"]:
        # These import torch, for which only a user with data of their own should wait.
        from components.runtime.datasets.user_data import local_folder
        from model.data.user.json_lines import LINES
        from model.data.user.user_data import WHAT, parse_sources

        for source in parse_sources(text):
            # prepare_data, the first step, checks an object store itself before it writes anything.
            path = local_folder(source.uri)
            if path is None or os.path.isdir(path) or (path.suffix.lower() == LINES and os.path.isfile(path)):
                continue
            raise MoonflowError(
                f"[prepare_data] sources: {source.name} names {source.uri}, and there is no such folder or {LINES} "
                f"file: name a folder with {WHAT}, a {LINES} file, or s3://..."
            )


def _tasks(profile: Profile) -> None:
    if names := own_tasks(profile):
        # Imports torch, for which only a user with tasks of their own should wait.
        from model.rl.tasks.own_tasks import OwnTasks

        with OwnTasks(names):
            pass  # raises MoonflowError for a module or a name that is not there


def own_tasks(profile: Profile) -> list[str]:
    """The user's tasks in a profile, as module:name."""
    texts = {step: getattr(config, "tasks", "") for step, config in profile.steps.items()}
    trained = [name for step in ("visual_rl", "joint_rl", "parl") for name in parse_task_shares(texts.get(step, ""))]
    return list(dict.fromkeys([*trained, *parse_tasks(texts.get("evaluate", ""))]))


def _sandbox(profile: Profile) -> None:
    if any(isinstance(config, EpisodesConfig) and config.sandbox == "strict" for config in profile.steps.values()):
        with Sandbox() as sandbox:
            _ = sandbox.isolation  # raises MoonflowError where programs would be refused


def _overlay(repository: str, environment: str) -> None:
    if shutil.which("git") is None:
        raise MoonflowError("git is missing, and promote commits with it: install it (`moonflow doctor` says how)")
    place = Path(repository)
    if not is_remote(repository) and not place.exists():
        overlay.path_of(MANIFESTS, environment)  # promote creates the repository from these
        return
    if not is_remote(repository) and not os.access(place, os.W_OK):
        raise MoonflowError(f"the GitOps repository {repository} cannot be written: promote has to commit there")
    with clone(repository) as folder:
        overlay.path_of(folder if has_commits(folder) else MANIFESTS, environment)
