"""The end of a run, also of one that failed: one summary and one report of what its manifests say."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from components.ablation import ablations
from components.finish.config import Config
from components.finish.outcome import outcome
from components.finish.report import render
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import METRICS, Manifest
from components.runtime.checkpoints.step_checkpoints import newest
from components.runtime.step import read_metrics
from components.runtime.steps import IMPORTED, config_class, in_order, step_of
from components.runtime.store.object_store import NotInStore, ObjectStore, disk_errors
from components.runtime.tracking.mlflow_runs import Outcome
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole

FOLLOWS = {"promote": ("evals", "evaluate"), "serve": ("promotion", "promote")}
"""Steps that may be left over from an earlier decision: (their input, the step whose newest output it must be)."""
GALLERY = "gallery.json"  # a file of evaluate's output
PACKAGES = ("moonflow", "torch", "kfp", "mlflow", "numpy", "tokenizers")


@dataclass(frozen=True)
class RunFiles:
    """``files``: name -> text of what was written. ``outcome``: what the pipeline's run in MLflow will show."""

    files: Mapping[str, str]
    outcome: Outcome


def run(
    config: Config, store: ObjectStore, run_id: str, run_dir: Path | None, error: str, tasks: Sequence[str] = ()
) -> RunFiles:
    """Write ``summary.json``, ``events.json`` and ``report.html`` below ``<run>/finish/`` and into ``run_dir``.

    If arms of an ablation have ended, these files are about them, and ``table.md`` is written as well.

    Unlike the other steps, it writes its files again each time, so that they show the newest state of the run.

    Args:
        run_dir: folder of a local run; None on a cluster.
        error: why the run ended early, empty if it did not.
        tasks: names of the run's tasks. Arms that are not among them are left out, and arms among them that have no
            result are named. Empty if they are not known: all that is found is compared.
    """
    # 1. What each step published last, finished or not.
    names = in_order(store.folders(f"{run_id}/"))
    found = {name: m for name in names if (m := newest(store, f"{run_id}/{name}")) is not None}

    left_out = take_out_others(found, tasks)
    outdated = take_out_outdated(found)

    # 2. The figures.
    summary = summarise(found)
    before = _told_before(store, run_id)
    if summary["steps"] and before.get("steps") == summary["steps"]:  # no step has run since
        summary["seconds"] = before["seconds"]
    curves = {step: history(store, manifest, f"{run_id}/{step}") for step, manifest in found.items()}
    events = {step: thin(rows, config.curve_points) for step, rows in curves.items()}
    extra: dict[str, Any] = {"run_id": run_id, "profile": os.environ.get("MOONFLOW_PROFILE", ""), "error": error}
    extra |= {step: found[step].extra for step in (IMPORTED, "evaluate", "promote", "serve") if step in found}
    extra["warnings"] = [
        f"{step}: {line}" for step, manifest in found.items() for line in manifest.extra.get("warnings", ())
    ]
    if left_out:
        extra["warnings"].append(f"in this run's folder and not in its profile, so left out: {', '.join(left_out)}")
    if "evaluate" in found:
        try:
            extra["gallery"] = read_gallery(store, found["evaluate"], f"{run_id}/evaluate")
        except (MoonflowError, ValueError) as damage:  # the report says so, and has all the rest
            extra["warnings"].append(f"evaluate: {GALLERY} cannot be read: {damage}")
    if "promote" in outdated and extra.get("evaluate", {}).get("decision") == "hold":
        extra["warnings"].append(
            f"promote: an earlier decision let version {outdated['promote'].extra.get('version')} through, and it is "
            "still promoted: `moonflow promote --rollback` takes it back"
        )

    # 3. The page, and everything it was made from.
    if arms := [m.extra["ablation"] for m in found.values() if "ablation" in m.extra]:
        cells = [task.partition("-")[2] for task in tasks if "arm" in config_class(step_of(task)).looped]
        summary["ablation"] = ablations.compare(arms, events, cells)
    files = {
        "summary.json": json.dumps(summary, indent=2) + "\n",
        "events.json": json.dumps({"events": events, "extra": extra}) + "\n",
        "report.html": render(summary, events, extra),
    }
    if arms:
        files["table.md"] = ablations.of(summary["ablation"]).markdown(summary["ablation"])
        files["table.md"] += "".join(f"- {warning}\n" for warning in extra["warnings"])
    for name, text in files.items():
        store.put(f"{run_id}/finish/{name}", text.encode())
        if run_dir is not None:
            with disk_errors(run_dir / name):
                write_whole(run_dir / name, text.encode())
    return RunFiles(files, outcome(found, summary, extra["profile"], error))


def _told_before(store: ObjectStore, run_id: str) -> dict[str, Any]:
    """The summary that an earlier call wrote, empty if there is none."""
    try:
        told = json.loads(store.get(f"{run_id}/finish/summary.json"))
    except (NotInStore, ValueError):
        return {}
    return told if isinstance(told, dict) and "seconds" in told else {}


def take_out_others(found: dict[str, Manifest], tasks: Collection[str]) -> list[str]:
    """Remove from ``found``, and name, the arms of an ablation that are not among the run's ``tasks``, if these are
    known: a run that is started again may have other seeds or arms than before."""
    others = [task for task in found if tasks and task not in tasks and config_class(step_of(task)).looped]
    for task in others:
        del found[task]
    return others


def take_out_outdated(found: dict[str, Manifest]) -> dict[str, Manifest]:
    """Remove from ``found``, and return, what was made from an output that its step has replaced since."""
    outdated: dict[str, Manifest] = {}
    for step, (name, before) in FOLLOWS.items():
        if step not in found or not (uri := found[step].extra.get("inputs", {}).get(name)):
            continue
        if before not in found or uri.rstrip("/") != found[before].uri:
            outdated[step] = found.pop(step)
    return outdated


def summarise(found: Mapping[str, Manifest]) -> dict[str, Any]:
    """The machine-readable end of a run: ``seconds, steps, evals, promoted, versions``.

    ``seconds`` is the time since this call of the run began, or the sum of the steps' times if that is more, because
    several calls shared the work. If no step has run since an earlier call, ``run`` keeps that call's figure.
    """
    done = {step: manifest for step, manifest in found.items() if manifest.complete}
    steps = [
        {"name": step, "seconds": m.extra.get("seconds", 0.0), "tokens_per_s": m.extra.get("tokens_per_s", 0.0)}
        for step, m in done.items()
    ]
    worked = sum(step["seconds"] for step in steps)
    elapsed = time.time() - float(os.environ.get("MOONFLOW_STARTED", time.time()))
    promoted = None
    if "promote" in done:
        extra = done["promote"].extra
        promoted = {key: extra[key] for key in ("version", "manifest_sha256", "commit")}
    return {
        "seconds": round(max(worked, elapsed), 1),
        "steps": steps,
        "evals": done["evaluate"].extra["evals"] if "evaluate" in done else [],
        "promoted": promoted,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python, the operating system and the packages that the figures depend on."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def history(store: ObjectStore, manifest: Manifest, prefix: str) -> list[dict[str, float]]:
    """The step's metric history, from its ``manifest`` of an output below ``prefix``; empty if that holds none."""
    if all(file.name != METRICS for file in manifest.files):
        return []
    with tempfile.TemporaryDirectory() as folder:
        manifests.fetch_files(store, f"{prefix}/{manifest.index}", manifest, Path(folder), [METRICS])
        return read_metrics(Path(folder))


def read_gallery(store: ObjectStore, manifest: Manifest, prefix: str) -> dict[str, Any]:
    """The examples of an evaluation, from its ``manifest`` of an output below ``prefix``; empty if that holds none.

    Raises:
        MoonflowError: the file is missing or damaged.
        ValueError: it is no JSON.
    """
    if all(file.name != GALLERY for file in manifest.files):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        manifests.fetch_files(store, f"{prefix}/{manifest.index}", manifest, Path(folder), [GALLERY])
        found: dict[str, Any] = json.loads((Path(folder) / GALLERY).read_text())
        return found


def thin(rows: Sequence[dict[str, float]], points: int) -> list[dict[str, float]]:
    """At most ``points`` rows, 2 or more, evenly spaced, the first and the last one among them."""
    if len(rows) <= points:
        return list(rows)
    return [rows[number * (len(rows) - 1) // (points - 1)] for number in range(points)]
