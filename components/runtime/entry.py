"""Where a KFP task enters our code: from component arguments and artifacts to ``launch`` and back."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.steps import config_class
from model.errors import MoonflowError

if TYPE_CHECKING:
    from kfp import dsl

    from components.runtime.manifest import Manifest

MANIFEST_URI = "manifest_uri"
"""The key of an output's metadata that names its manifest's prefix in the object store."""


def enter(
    step: str,
    arguments: Mapping[str, Any],
    *,
    inputs: Mapping[str, dsl.Artifact],
    output: dsl.Artifact,
    metrics: dsl.Metrics,
    card: dsl.Markdown,
) -> Manifest:
    """Run ``step``, write its manifest's bytes to ``output`` and name the manifest's prefix in its metadata.

    ``arguments`` are the component's (its ``locals()``): those named like fields of the step's Config become the
    config, ``run_id`` names the run, ``later`` of the first step holds the texts of all. In the UI, numbers in the
    manifest's ``extra`` are shown as ``metrics``, and ``card`` leads to the MLflow run and to the manifest.
    """
    schema = config_class(step)
    config = {name: arguments[name] for name in schema.model_fields}
    with task(schema.task_name(step, config), arguments["run_id"]) as state:
        from components.runtime import later
        from components.runtime.again import again
        from components.runtime.card import step_card
        from components.runtime.launcher.launch import launch, placement_from_environment
        from components.runtime.mlflow_runs import mlflow_link

        later.check(arguments.get("later", ""))
        given = {name: _prefix(name, artifact) for name, artifact in inputs.items()}
        placement = placement_from_environment()
        manifest = again(step, lambda: launch(step, config, given, placement))
        state["kept"] = datetime.fromisoformat(manifest.created_at).timestamp() < int(state["started"])
        # The output keeps the uri that KFP gave it: KFP copies that file out of this task and into those that read it,
        # with its own keys, and fails a task whose output lies outside of the run's root.
        _write(output, manifest.canonical())
        output.metadata.update(
            {MANIFEST_URI: manifest.uri.rstrip("/")},
            step=step,
            run_id=manifest.run_id,
            manifest_sha256=manifest.sha256,
            git_commit=manifest.git_commit,
            mlflow_run_id=manifest.mlflow_run_id,
            mlflow_run=mlflow_link(manifest.mlflow_run_id),
        )
        for name, value in manifest.extra.items():
            if isinstance(value, int | float):
                metrics.log_metric(name, float(value))
        _write(card, step_card(manifest, kept=state["kept"], history=_history(manifest)).encode())
    return manifest


def close(arguments: Mapping[str, Any], *, error: str, report: dsl.HTML, card: dsl.Markdown) -> None:
    """Run ``finish``: it is no step with a manifest, because it tells of the run anew each time."""
    with task("finish", arguments["run_id"]) as state:
        from components.finish import stage
        from components.finish.config import Config
        from components.runtime.again import again
        from components.runtime.card import run_card
        from components.runtime.mlflow_runs import finish_pipeline
        from components.runtime.store import ObjectStore

        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            _sweep()
        config = Config.parse({name: arguments[name] for name in Config.model_fields}, "step finish")
        folder = os.environ.get("MOONFLOW_RUN_DIR")
        run_dir = Path(folder) if folder else None
        error = (_first_error(run_dir) if run_dir else "") or error
        store, run_id = ObjectStore.from_env(), os.environ["MOONFLOW_RUN_ID"]
        finished = again("finish", lambda: stage.run(config, store, run_id, run_dir, error))
        parent = finish_pipeline(run_id, "FAILED" if error else "FINISHED", finished.outcome)
        _write(report, finished.files["report.html"].encode())
        _write(card, run_card(run_id, parent, store.uri(f"{run_id}/finish/report.html"), error).encode())
        state["kept"] = False


@contextmanager
def task(step: str, run_id: str) -> Iterator[dict[str, Any]]:
    """Around a task: names the run, and turns a MoonflowError into its one line and exit status 1.

    In a local run ``<run dir>/tasks/<step>.json`` tells the CLI how the task stands: ``{"state": running | done |
    failed, "started", "ended": Unix seconds, "kept": it was finished before, "error": the one line}``.
    """
    if run_id:
        os.environ["MOONFLOW_RUN_ID"] = run_id
    state: dict[str, Any] = {"state": "running", "started": time.time()}
    _write_state(step, state)
    try:
        yield state
        state["state"] = "done"
    except MoonflowError as error:
        state["error"] = str(error)
        print(f"{step}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        if state["state"] == "running":
            state["state"] = "failed"
        state["ended"] = time.time()
        _write_state(step, state)


def _history(manifest: Manifest) -> list[dict[str, float]]:
    """The metrics that a step has published; none if the store is away just now, for a picture must not fail a step."""
    from components.runtime.manifest import METRICS, fetch_files
    from components.runtime.step import read_metrics
    from components.runtime.store import ObjectStore

    if all(file.name != METRICS for file in manifest.files):
        return []
    with suppress(MoonflowError), tempfile.TemporaryDirectory(prefix="moonflow-") as folder:
        fetch_files(ObjectStore.from_env(), manifest.uri, manifest, Path(folder), [METRICS])
        return read_metrics(Path(folder))
    return []


def _sweep() -> None:
    """End what a cancelled step could not end itself; a cluster without TrainJobs must not fail the report."""
    from components.runtime.launcher.sweep import sweep

    try:
        sweep()
    except MoonflowError as error:
        print(f"finish: no TrainJobs looked for: {error}", flush=True)


def _write_state(step: str, state: Mapping[str, Any]) -> None:
    if folder := os.environ.get("MOONFLOW_RUN_DIR"):
        path = Path(folder) / "tasks" / f"{step}.json"
        # A full disk must not hide the error that it caused.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(state))
            part.replace(path)


def _first_error(run_dir: Path) -> str:
    """The line of the task that failed first: KFP's final status knows only that something failed."""
    failed: list[tuple[float, str]] = []
    for path in (run_dir / "tasks").glob("*.json"):
        with suppress(OSError, ValueError):
            state = json.loads(path.read_text())
            if "error" in state:
                failed.append((state["ended"], f"{path.stem}: {state['error']}"))
    return min(failed)[1] if failed else ""


def _write(artifact: dsl.Artifact, data: bytes) -> None:
    """Write the file that KFP keeps as ``artifact`` and its UI shows."""
    from components.runtime.store import disk_errors

    path = Path(artifact.path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _prefix(name: str, artifact: dsl.Artifact) -> str:
    prefix = artifact.metadata.get(MANIFEST_URI, "")
    if not prefix:
        raise MoonflowError(
            f"input {name} has no {MANIFEST_URI} in its metadata: its task ran another version of moonflow; start a "
            "new run, with this one's id as p00_run_id to keep what is finished"
        )
    return str(prefix)
