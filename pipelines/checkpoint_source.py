"""What ``moonflow evaluate`` is given: a checkpoint folder, a run or one of its steps, or a checkpoint in a store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from components.evaluate.config import Config
from components.evaluate.measuring import SUB_AGENTS
from components.import_checkpoint.sources import newest_checkpoint
from components.promote.export import EXPORTED_FROM
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import MANIFEST, Manifest, prefix_of
from components.runtime.checkpoints.step_checkpoints import newest
from components.runtime.datasets.shards import open_data
from components.runtime.datasets.user_data import store_of
from components.runtime.steps import TRAINING_STEPS
from components.runtime.store.address import FILE, S3, is_address
from components.runtime.store.folder_store import FolderStore
from components.runtime.store.object_store import ObjectStore, disk_errors
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.boundary.private_folder import private_folder
from model.checkpoint.file_names import CONFIG
from model.checkpoint.folder import serves
from model.data.batches.folder import DataFolder
from pipelines.profile import find_step_of_run
from pipelines.run_folder import made_by_a_run, run_id_of, services_folder
from pipelines.services import visited
from pipelines.source_run import run_and_step

WEIGHTS = ".safetensors"


def defaults() -> Config:
    """How an evaluate step measures that nobody has told otherwise."""
    return Config.parse({}, "the defaults")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        title: what it is and where it came from.
        folder: its files; without weights if none were asked for.
        sub_agents: the checkpoint that speaks for the frozen sub-agents of a swarm; None: this one.
        config: how the evaluate step of its run measures; the defaults if there is no run.
        data: the run's data; None: tasks are drawn from the generators.
        notes: what the user should know about the choice.
    """

    title: str
    folder: Path
    sub_agents: Path | None = None
    config: Config = field(default_factory=defaults)
    data: DataFolder | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def located(given: str, *, weights: bool = True, swarm: bool = True) -> Iterator[Source]:
    """Find and fetch the checkpoint. The source's data can be read while the body runs.

    Args:
        weights: whether the model is loaded here.
        swarm: whether it leads a swarm, whose frozen sub-agents are then found too.

    Raises:
        MoonflowError: there is no checkpoint, it is not whole, or its store cannot be reached.
    """
    if given.startswith(S3):
        store = store_of(given)
        store.check()
        yield _stored(store, prefix_of(given), weights, swarm)
        return
    path = Path(os.path.expanduser(prefix_of(given.removeprefix(FILE))))
    if os.path.isfile(path / CONFIG):
        yield Source(f"checkpoint folder {path}", path)
    elif os.path.isfile(path / MANIFEST):
        folder = path.resolve()
        yield _stored(FolderStore(f"{FILE}{folder}"), f"{FILE}{folder}", weights, swarm)
    elif os.path.isfile(path / "profile.toml") and not is_address(given):
        run_dir = made_by_a_run(path)
        config = _evaluate_of(run_dir)
        with visited(services_folder(run_dir)) as environment:
            yield _of_run(run_dir, config, open_store(environment), weights, swarm)
    elif not is_address(given) and (named := run_and_step(path)) is not None:
        run_dir, step = named
        with visited(services_folder(run_dir)) as environment:
            yield _of_step(run_dir, step, open_store(environment), weights, swarm)
    else:
        raise MoonflowError(
            f"{given[:300]} is no checkpoint: give a folder with {CONFIG}, a run's folder (`moonflow run --profile "
            f"tiny` makes runs/tiny) or one of its steps (runs/tiny/mid_train), or the s3:// or file:// address of a "
            f"{MANIFEST} or of the prefix that it is in"
        )


def _of_step(run_dir: Path, step: str, store: ObjectStore, weights: bool, swarm: bool) -> Source:
    """The newest complete checkpoint of a run's step, or the one whose number follows the step's name."""
    found = newest_checkpoint(store, f"{run_id_of(run_dir)}/{step}")
    if found is None:
        raise MoonflowError(f"{run_dir} has no complete checkpoint of {step[:100]}: name a step that has been trained")
    where, manifest = found
    root, config = run_id_of(run_dir), find_step_of_run(run_dir, "evaluate") or defaults()
    assert isinstance(config, Config)
    return _source(store, where, manifest, root, run_dir / "work" / "cache", weights, swarm, config, ())


def _evaluate_of(run_dir: Path) -> Config:
    """The parameters of a run's evaluate step. MoonflowError for an ablation, which ends in many checkpoints."""
    config = find_step_of_run(run_dir, "evaluate")
    if config is None:
        begun = ", ".join(sorted(path.stem for path in (run_dir / "tasks").glob("*.json"))) or "none yet"
        raise MoonflowError(
            f"{run_dir} is a run of an ablation, which has no last checkpoint: name one of its steps as "
            f"{run_dir}/STEP; it has begun {begun}"
        )
    assert isinstance(config, Config)
    return config


def _of_run(run_dir: Path, config: Config, store: ObjectStore, weights: bool, swarm: bool) -> Source:
    """The newest complete checkpoint of the last step of a run that has one."""
    root, begun = run_id_of(run_dir), []
    for step in reversed(TRAINING_STEPS):
        found = newest(store, f"{root}/{step}")
        if found is not None and found.complete:
            break
        begun += [step] if found is not None else []
    else:
        raise MoonflowError(
            f"{run_dir} has no finished training step ({', '.join(TRAINING_STEPS)}): continue it with moonflow run"
        )
    notes = tuple(f"{step} is not finished, so it is left out" for step in begun)
    where = f"{root}/{step}/{found.index}"
    return _source(store, where, found, root, run_dir / "work" / "cache", weights, swarm, config, notes)


def _stored(store: ObjectStore, prefix: str, weights: bool, swarm: bool) -> Source:
    """The checkpoint whose manifest is at an address."""
    found = manifests.read(store, prefix)
    cache = private_folder(Path(tempfile.gettempdir())) / "evaluate"
    root = prefix.rpartition("/")[0].rpartition("/")[0]  # of <run>/<step>/<index>
    return _source(store, prefix, found, root if is_address(root) else "", cache, weights, swarm, defaults(), ())


def _source(
    store: ObjectStore, where: str, found: Manifest, root: str, cache: Path, weights: bool, swarm: bool,
    config: Config, notes: tuple[str, ...],
) -> Source:  # fmt: skip
    uri = store.uri(where)
    if found.kind != "checkpoint":
        raise MoonflowError(f"{uri} holds {found.kind}, the output of {found.step}, and no checkpoint: give one")
    agents = newest(store, f"{root}/{SUB_AGENTS}") if weights and swarm and root else None
    if agents is not None and (not agents.complete or agents.sha256 == found.sha256):
        agents = None
    data, note = _data(store, found, cache)
    return Source(
        f"step {found.step} of run {found.run_id}, checkpoint {found.index} ({uri})",
        _fetch(store, where, found, cache, weights),
        None if agents is None else _fetch(store, f"{root}/{SUB_AGENTS}/{agents.index}", agents, cache, weights),
        config,
        data,
        notes + note,
    )


def _fetch(store: ObjectStore, where: str, manifest: Manifest, cache: Path, weights: bool) -> Path:
    """A folder with the checked files of a checkpoint that serve; those of its training are left where they are."""
    folder = cache / manifest.sha256
    names = [file.name for file in manifest.files if serves(file.name)]
    with disk_errors(folder):
        manifests.fetch_files(
            store, where, manifest, folder, [name for name in names if weights or not name.endswith(WEIGHTS)]
        )
    return folder


def _data(store: ObjectStore, checkpoint: Manifest, cache: Path) -> tuple[DataFolder | None, tuple[str, ...]]:
    """The data that the checkpoint's step was given, and a note if it cannot be read."""
    try:
        if exported_from := checkpoint.extra.get(EXPORTED_FROM):
            checkpoint = manifests.read(store, exported_from)
        if not (uri := checkpoint.extra.get("inputs", {}).get("data")):
            return None, ()
        return open_data(store, uri, cache), ()
    except MoonflowError as error:
        return None, (f"its run's data cannot be read, so the tasks are drawn anew: {error}",)
