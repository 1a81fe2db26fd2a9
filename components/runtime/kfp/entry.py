"""Where a KFP task enters our code: from component arguments and artifacts to ``launch`` and back."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.runtime.steps import config_class, stage_of
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole

if TYPE_CHECKING:
    from kfp import dsl

    from components.runtime.checkpoints.manifest import Manifest

MANIFEST_URI = "manifest_uri"
"""The key of an output's metadata that names its manifest's prefix in the object store."""


def enter(
    step: str,
    arguments: Mapping[str, Any],
    *,
    inputs: Mapping[str, dsl.Artifact | None],
    output: dsl.Artifact,
    metrics: dsl.Metrics,
    card: dsl.Markdown,
) -> Manifest:
    """Run ``step``, write its manifest's bytes to ``output`` and name the manifest's prefix in its metadata.

    ``arguments`` are the component's (its ``locals()``): those named like fields of the step's Config become the
    config, ``run_id`` names the run, and ``later``, an argument of the first step, holds the text parameters of all
    steps. An input that the pipeline does not give is None. In the UI, ``metrics`` shows the numbers in the manifest's
    ``extra``, and ``card`` the MLflow run and the manifest.
    """
    schema = config_class(step)
    config = {name: arguments[name] for name in schema.model_fields}
    with task(schema.task_name(step, config), arguments["run_id"]) as state:
        from components.runtime.kfp import later
        from components.runtime.kfp.card import step_card
        from components.runtime.launcher.launch import launch, placement_from_environment
        from components.runtime.launcher.retry import retry
        from components.runtime.tracking.mlflow_runs import mlflow_link

        later.check(arguments.get("later", ""))
        given = {name: _prefix(name, artifact) for name, artifact in inputs.items() if artifact is not None}
        placement = placement_from_environment()
        queued = partial(state.__setitem__, "queued_s")
        manifest = retry(step, lambda: launch(step, config, given, placement, queued))
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
        shown = step_card(manifest, kept=state["kept"], queued_s=state.get("queued_s"), history=_history(manifest))
        _write(card, shown.encode())
    return manifest


def close(arguments: Mapping[str, Any], *, error: str, report: dsl.HTML, card: dsl.Markdown) -> None:
    """Run ``finish``, which publishes no manifest, because it reports the run's newest state each time.

    ``arguments`` are the component's: the fields of its Config, ``run_id``, and ``tasks`` with commas between, which a
    pipeline that an earlier version compiled does not give.
    """
    with task("finish", arguments["run_id"]) as state:
        from components.runtime.kfp.card import run_card
        from components.runtime.launcher.retry import retry
        from components.runtime.store.open_store import open_store
        from components.runtime.tracking.mlflow_runs import end_pipeline_run

        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            sweep_cancelled()
        schema, stage = config_class("finish"), stage_of("finish")
        config = schema.parse({name: arguments[name] for name in schema.model_fields}, "step finish")
        folder = os.environ.get("MOONFLOW_RUN_DIR")
        run_dir = Path(folder) if folder else None
        tasks = [name for name in arguments.get("tasks", "").split(",") if name]
        error = (_first_error(run_dir, tasks) if run_dir else "") or error
        store, run_id = open_store(), os.environ["MOONFLOW_RUN_ID"]
        written = retry("finish", lambda: stage.run(config, store, run_id, run_dir, error, tasks))
        parent = end_pipeline_run(run_id, "FAILED" if error else "FINISHED", written.outcome)
        _write(report, written.files["report.html"].encode())
        _write(card, run_card(run_id, parent, store.uri(f"{run_id}/finish/report.html"), error).encode())
        state["kept"] = False


@contextmanager
def task(step: str, run_id: str) -> Iterator[dict[str, Any]]:
    """Names the run for the task in the body, and turns a MoonflowError into its one line and exit status 1.

    In a local run ``<run dir>/tasks/<step>.json`` tells the CLI how the task stands: ``{"state": running | done |
    failed, "started", "ended": Unix seconds, "kept": it was finished before, "queued_s": of its TrainJob, "error": the
    one line}``.
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
    """The metrics that a step has published; none if the store is away, since a picture must not fail the step."""
    from components.runtime.checkpoints.manifest import METRICS, fetch_files
    from components.runtime.step import read_metrics
    from components.runtime.store.open_store import open_store

    if all(file.name != METRICS for file in manifest.files):
        return []
    with suppress(MoonflowError), tempfile.TemporaryDirectory(prefix="moonflow-") as folder:
        fetch_files(open_store(), manifest.uri, manifest, Path(folder), [METRICS])
        return read_metrics(Path(folder))
    return []


def sweep_cancelled() -> None:
    """Delete TrainJobs that a cancelled step could not delete; a cluster without TrainJobs must not fail the report."""
    from components.runtime.launcher.sweep import sweep

    try:
        sweep()
    except MoonflowError as error:
        print(f"finish: did not look for TrainJobs of this run: {error}", flush=True)


def _write_state(step: str, state: Mapping[str, Any]) -> None:
    if folder := os.environ.get("MOONFLOW_RUN_DIR"):
        path = Path(folder) / "tasks" / f"{step}.json"
        # A full disk must not hide the error that it caused.
        with suppress(OSError):
            write_whole(path, json.dumps(state).encode())


def _first_error(run_dir: Path, tasks: Collection[str]) -> str:
    """The line of the task that failed first: KFP's final status knows only that something failed.

    The folder may have a state of a task that is not among the run's ``tasks`` any more (empty = not known).
    """
    failed: list[tuple[float, str]] = []
    for path in (path for path in (run_dir / "tasks").glob("*.json") if not tasks or path.stem in tasks):
        with suppress(OSError, ValueError):
            state = json.loads(path.read_text())
            if "error" in state:
                failed.append((state["ended"], f"{path.stem}: {state['error']}"))
    return min(failed)[1] if failed else ""


def _write(artifact: dsl.Artifact, data: bytes) -> None:
    """Write the file that KFP keeps as ``artifact`` and its UI shows."""
    from components.runtime.store.object_store import disk_errors

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
