"""``moonflow seeds``: run a profile several times on this machine, each time with other seeds, or go on with that.

The folder holds ``seeds.toml`` (the profile), ``seeds.json`` and ``seeds.md`` (the result so far), one object store and
one MLflow for all runs, and each run's own folder, ``seeds-<number>/``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.release.git import REPOSITORY as REPOSITORY_VARIABLE
from components.runtime.tracking.mlflow_runs import Outcome, group_pipelines
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole
from pipelines.preflight import preflight
from pipelines.profile import RESOLVED, Profile, load_profile, require_same_steps
from pipelines.result import mlflow_page, say
from pipelines.run import lay_out, require_local, run_lock, run_pipeline, start_services, stop_on_signal, writing
from pipelines.run_folder import SEEDS_PROFILE, is_run_folder, resume_command, run_folder
from pipelines.seeds import results, rule, table
from pipelines.seeds.results import SeedRun
from pipelines.services import REPOSITORY, Services, exported
from pipelines.source_run import fetch_source

PAGE = "seeds.md"
DEFAULT_RUNS = 3
"""Runs of a new folder unless another number is asked for (ours: the fewest whose spread says something)."""


@dataclass(frozen=True)
class Member:
    """One of the runs: its number, the profile with its seeds, and its folder."""

    number: int
    profile: Profile
    folder: Path

    @classmethod
    def of(cls, profile: Profile, folder: Path, number: int) -> Member:
        return cls(number, rule.moved(profile, number), folder / f"seeds-{number}")

    @property
    def repository(self) -> str:
        """The GitOps repository that it promotes to, which is its own: no run follows another one's promotion."""
        return str(self.folder / REPOSITORY)

    @property
    def result(self) -> SeedRun:
        """How it ended, as far as that still holds. MoonflowError if it was begun with other parameters."""
        unfinished = SeedRun(self.number, "unfinished", rule.seeds_of(self.profile))
        if not is_run_folder(self.folder):
            return unfinished
        require_same_steps(self.profile, self.folder)
        try:
            earlier = load_profile(str(self.folder / RESOLVED))
        except MoonflowError as error:
            told = f"{self.folder} was begun with an earlier version of the pipeline ({error})"
            raise MoonflowError(f"{told}: give another --run-dir") from None
        if not rule.require_same(self.profile, earlier, str(self.folder)):
            return unfinished  # the gate, for example, has other rules now
        return results.saved(self.folder) or unfinished


def default_folder(profile: Profile) -> Path:
    return Path("runs") / f"seeds-{profile.run.name}"


def run_seeds(
    profile: Profile, folder: Path, count: int | None, first: int | None, *, keep: bool, console: Console
) -> dict[str, Any]:
    """Run what is not finished of ``count`` runs from number ``first`` on, one after the other, and show all together.

    A run that fails is counted, and the next one begins; a later call goes on with it. Runs of the folder that were not
    asked for this time stay in the table.

    Args:
        count, first: None = ``DEFAULT_RUNS`` and 1; if both are None, the runs that the folder has.
        keep: leave the services running.

    Returns:
        What ``results.compare`` found.

    Raises:
        MoonflowError: the profile cannot be run, something that a run needs is missing, the folder has other runs, or
            a service ended.
    """
    require_local(profile)
    folder = run_folder(folder)
    if is_run_folder(folder):
        raise MoonflowError(f"{folder} is the folder of a run: give another --run-dir")
    asked = numbers(folder, count, first)
    members = [Member.of(profile, folder, number) for number in sorted({*numbers_of(folder), *asked})]
    for member in members:
        if not member.result.complete and member.number in asked:
            preflight(member.profile, member.repository, begun=is_run_folder(member.folder))

    with run_lock(folder), stop_on_signal():
        with writing(folder):
            write_whole(folder / SEEDS_PROFILE, profile.as_toml().encode())
        found = _write(folder, profile, members)
        todo = [member for member in members if member.number in asked and not member.result.complete]
        page = ""
        if todo or keep:
            with start_services(folder, console, keep=keep) as services, exported(services.environment):
                found = _run_all(profile, members, todo, folder, services, console)
                page = mlflow_page(services.environment)
        table.show(found, console)
        if page:
            say(console, f"MLflow     {page}")
        if not keep:
            say(
                console,
                f"{'' if page else 'MLflow':10} stopped; start it again with {resume_command(folder, '--keep')}",
            )
        say(console, f"page       {folder / PAGE}")
    return found


def print_plan(profile: Profile, folder: Path, count: int | None, first: int | None) -> None:
    """Print the folder and the seeds of every run that ``run_seeds`` would start or continue."""
    for number in numbers(folder, count, first):
        member = Member.of(profile, folder, number)
        told = ", ".join(f"{step} {seed}" for step, seed in rule.seeds_of(member.profile).items())
        print(f"{member.folder}: {'finished' if member.result.complete else told}")


def numbers(folder: Path, count: int | None, first: int | None) -> list[int]:
    """The numbers of the runs that a call asks for."""
    if count is None and first is None and (there := numbers_of(folder)):
        return there
    start = 1 if first is None else first
    return list(range(start, start + (count or DEFAULT_RUNS)))


def numbers_of(folder: Path) -> list[int]:
    """The numbers of the runs that earlier calls were asked for in a folder."""
    try:
        return sorted(int(run["number"]) for run in results.together(folder)["runs"])
    except MoonflowError:
        names = (path.name.removeprefix("seeds-") for path in folder.glob("seeds-*") if is_run_folder(path))
        return sorted(int(name) for name in names if name.isdecimal())


def _run_all(
    profile: Profile,
    members: Sequence[Member],
    todo: Sequence[Member],
    folder: Path,
    services: Services,
    console: Console,
) -> dict[str, Any]:
    """Run ``todo`` one after the other; returns how all ``members`` compare then."""
    found = _write(folder, profile, members)
    try:
        for place, member in enumerate(todo, start=1):
            say(console, f"seeds {member.number}, {place} of {len(todo)} to run: {member.folder}")
            _track(profile, found, [member], "RUNNING")
            run = _run(member, services, console)
            say(console, table.outcome_of(run))
            found = _write(folder, profile, members)
    except BaseException:
        _track(profile, found, [], "KILLED")
        raise
    _track(profile, found, [member for member in members if is_run_folder(member.folder)], "FINISHED")
    return found


def _run(member: Member, services: Services, console: Console) -> SeedRun:
    """Run or continue one member, and save its result."""
    started, began = time.time(), time.monotonic()
    with run_lock(member.folder):
        (member.folder / results.RESULT).unlink(missing_ok=True)
        lay_out(member.profile, member.folder, rule.run_id(member.profile, member.number))
        source = fetch_source(member.profile, member.folder, console)
        environment = {**services.environment, **source, REPOSITORY_VARIABLE: member.repository}
        error = ""
        try:
            run_id = rule.run_id(member.profile, member.number)
            run_pipeline(member.profile, member.folder, run_id, environment, console, started=started, began=began)
        except MoonflowError as failure:
            if not services.alive:
                logs = services.run_dir / "logs"
                raise MoonflowError(
                    f"the object store or MLflow ended ({failure}): see {logs}; the same command continues from here"
                ) from failure
            error = str(failure)
        run = results.ended(member.folder, member.number, rule.seeds_of(member.profile), error, began)
        with writing(member.folder):
            results.save(member.folder, run)
    if run.complete:  # copies of what stores have, of hundreds of megabytes
        for name in ("cache", "source"):
            shutil.rmtree(member.folder / "work" / name, ignore_errors=True)
    return run


def _write(folder: Path, profile: Profile, members: Iterable[Member]) -> dict[str, Any]:
    """Write the files about all runs as they are now."""
    found = results.compare(profile.run.name, [member.result for member in members])
    with writing(folder):
        write_whole(folder / results.TOGETHER, (json.dumps(found, indent=1) + "\n").encode())
        write_whole(folder / PAGE, table.markdown(found).encode())
    return found


def _track(profile: Profile, found: dict[str, Any], members: Iterable[Member], status: str) -> None:
    """Show the runs below one run in MLflow, which compares them."""
    tags = {"moonflow.profile": profile.run.name}
    outcome = Outcome(results.metrics(found), tags=tags, note=table.markdown(found))
    runs = [rule.run_id(profile, member.number) for member in members]
    group_pipelines(f"seeds-{profile.run.name}", runs, status, outcome)
