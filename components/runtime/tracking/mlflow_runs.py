"""The runs of a pipeline in MLflow: one parent, and one child per step. Tags find them again, whoever made them.

Pipelines that belong together, such as those of ``moonflow seeds``, have a parent of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.boundary.errors import MoonflowError

RUN_TAG = "moonflow.run_id"
STEP_TAG = "moonflow.step"
PIPELINE = "pipeline"  # the value of STEP_TAG on a pipeline's parent run
GROUP = "group"  # and on the parent of several pipelines
COMMIT_TAG = "mlflow.source.git.commit"  # shown by MLflow's UI as the run's version
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # shown as the run's description, in Markdown
DIGEST_CHARS = 36  # MLflow keeps no more of a dataset's digest
PARAMS_AT_ONCE = 100  # and takes no more parameters in one request
LONGEST_PARAM, LONGEST_TAG = 6_000, 8_000  # characters that MLflow's database has room for


@dataclass(frozen=True)
class Dataset:
    """What a pipeline was trained on: ``digest`` in hex is of its content, ``uri`` its manifest's prefix."""

    name: str
    digest: str
    uri: str


@dataclass(frozen=True)
class Outcome:
    """What a pipeline's parent run shows, so that two pipelines compare by their parents.

    Attributes:
        ended: Unix seconds at which its last step ended; None = now.
        note: Markdown.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Dataset | None = None
    note: str = ""
    ended: float | None = None


def connect(uri: str) -> Any:
    """MLflow's client for the server at ``uri``, which gives up on an absent server within seconds."""
    # Read by mlflow at each request: its own defaults retry for minutes, which would outlive the flush at the end.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print the address for the steps, which browsers may not reach: mlflow_link gives the one for people.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def of_step(client: Any, run_id: str, step: str, began: float) -> str:
    """The MLflow run of a step, a child of its pipeline's; made if there is none.

    Args:
        began: when the step began (Unix seconds), so that a run created late, after MLflow was away, shows that time.
    """
    experiment = _experiment(client)
    parent = _find_or_create(client, experiment, run_id, PIPELINE, {}, began)
    return _find_or_create(client, experiment, run_id, step, {PARENT_TAG: parent}, began)


def end_pipeline_run(run_id: str, status: str, outcome: Outcome) -> str:
    """Write ``outcome`` to the pipeline's parent run and end it with FINISHED, FAILED or KILLED.

    The same outcome again changes nothing, the run's end included.

    Returns:
        The parent's id, or "" if MLflow is not set or an error was printed: tracking never fails a pipeline.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return ""
    try:
        client = connect(uri)
        parent, ours = _parent(client, run_id)
        _write(client, parent, outcome)
        if ours:
            ended = time.time() if outcome.ended is None else outcome.ended
            client.set_terminated(parent, status, int(ended * 1000))
    except Exception as error:
        print(f"the pipeline's run was not closed in MLflow ({first_line(error)})", file=sys.stderr)
        return ""
    if link := mlflow_link(parent):
        print(f"MLflow run of the pipeline: {link}", flush=True)
    return parent


def group_pipelines(group: str, run_ids: Sequence[str], status: str, outcome: Outcome) -> str:
    """Show pipelines below one run, which is made if it is missing, and write ``outcome`` to that run.

    Args:
        group: the run's name; no pipeline has it as its run id.
        run_ids: of the pipelines; the run of one that has not begun is made.
        status: RUNNING, FINISHED or KILLED.

    Returns:
        The id of the group's run, or "" if MLflow is not set or an error was printed: tracking never fails a pipeline.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return ""
    try:
        client, now = connect(uri), time.time()
        experiment = _experiment(client)
        parent = _find_or_create(client, experiment, group, GROUP, {}, now)
        for run_id in run_ids:
            run = _find_or_create(client, experiment, run_id, PIPELINE, {PARENT_TAG: parent}, now)
            if client.get_run(run).data.tags.get(PARENT_TAG) != parent:  # MLflow was away when the pipeline began
                client.set_tag(run, PARENT_TAG, parent)
        _write(client, parent, outcome)
        if status == "RUNNING":
            client.update_run(parent, status=status)
        else:
            client.set_terminated(parent, status)
        return parent
    except Exception as error:
        print(f"the run {group} was not written to MLflow ({first_line(error)})", file=sys.stderr)
        return ""


def download_files(run_id: str, folder: str, suffix: str, target: Path) -> list[tuple[str, Path]]:
    """Fetch what the steps of a pipeline keep in ``folder`` of their artifacts, to a folder of each step in ``target``.

    Returns:
        (step, local path) of each file whose name ends with ``suffix``, in the order of steps and names.

    Raises:
        MoonflowError: MLflow is not set, or does not give them.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise MoonflowError("MLFLOW_TRACKING_URI is not set: it names the MLflow that has the run's files")
    found = []
    try:
        client = connect(uri)
        experiment = client.get_experiment_by_name(_experiment_name())
        query = f"tags.`{RUN_TAG}` = '{run_id}'"
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id], query)
        for run in runs:
            step = Path(run.data.tags.get(STEP_TAG, "")).name
            for file in client.list_artifacts(run.info.run_id, folder):
                if not file.is_dir and file.path.endswith(suffix):
                    place = target / step
                    place.mkdir(parents=True, exist_ok=True)
                    found.append((step, Path(client.download_artifacts(run.info.run_id, file.path, str(place)))))
    except Exception as error:
        raise MoonflowError(f"MLflow at {uri} does not give the files of run {run_id} ({first_line(error)})") from error
    return sorted(found)


def unfinished() -> dict[str, list[str]]:
    """Our experiment's runs that show RUNNING, by the pipeline's run id; {} if MLflow is not set or does not answer."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return {}
    found: dict[str, list[str]] = {}
    try:
        client = connect(uri)
        experiment, page = client.get_experiment_by_name(_experiment_name()), None
        while experiment is not None:
            query = "attributes.status = 'RUNNING'"
            runs = client.search_runs([experiment.experiment_id], query, page_token=page)
            for run in runs:
                if run_id := run.data.tags.get(RUN_TAG):
                    found.setdefault(run_id, []).append(str(run.info.run_id))
            if not (page := runs.token):
                break
        return found
    except Exception as error:
        print(f"cannot look for unfinished runs in MLflow ({first_line(error)})", file=sys.stderr)
        return {}


def kill(runs: Sequence[str]) -> None:
    """End MLflow runs as KILLED; one line on stderr if MLflow does not take it."""
    try:
        client = connect(os.environ["MLFLOW_TRACKING_URI"])
        for run in runs:
            client.set_terminated(run, "KILLED")
    except Exception as error:
        print(f"runs were not ended in MLflow ({first_line(error)})", file=sys.stderr)


def mlflow_link(mlflow_run_id: str, environment: Mapping[str, str] = os.environ) -> str:
    """The run's address in MLflow's UI; "" without a run or without a web address."""
    server = web_address(environment)
    if not mlflow_run_id or not server.startswith(("http://", "https://")):
        return ""
    # A route that needs the run's id only: MLflow, which may be away, need not be asked.
    return f"{server}/#/runs/{mlflow_run_id}"


def web_address(environment: Mapping[str, str] = os.environ) -> str:
    """The address of MLflow's UI, or "": MLFLOW_PUBLIC_URI, for browsers, and without it MLFLOW_TRACKING_URI, which the
    steps use."""
    server = environment.get("MLFLOW_PUBLIC_URI") or environment.get("MLFLOW_TRACKING_URI") or ""
    return server.rstrip("/")


def log_params(client: Any, run: str, values: Mapping[str, str]) -> None:
    """Write a run's parameters. MLflow never changes one, so a later call's value becomes a tag of the same name."""
    from mlflow.entities import Param, RunTag

    data = client.get_run(run).data
    there = data.params
    values = {name: shortened(value, LONGEST_PARAM) for name, value in values.items()}
    told = {name: data.tags.get(name, value) for name, value in there.items()}
    changed = [RunTag(name, value) for name, value in values.items() if told.get(name, value) != value]
    if changed:
        client.log_batch(run, tags=changed)
    new = [Param(name, value) for name, value in values.items() if name not in there]
    for start in range(0, len(new), PARAMS_AT_ONCE):
        client.log_batch(run, params=new[start : start + PARAMS_AT_ONCE])


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text; one that was longer ends with "..."."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _parent(client: Any, run_id: str) -> tuple[str, bool]:
    """The pipeline's parent run, and whether it is ours to end.

    Where KFP keeps runs in MLflow itself, it names this task's run in MLFLOW_RUN_ID, and that run's parent is the
    pipeline's, which KFP ends.
    """
    if adopted := os.environ.get("MLFLOW_RUN_ID"):
        return client.get_run(adopted).data.tags.get(PARENT_TAG, adopted), False
    return _find_or_create(client, _experiment(client), run_id, PIPELINE, {}, time.time()), True


def _write(client: Any, run: str, outcome: Outcome) -> None:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, RunTag

    there = client.get_run(run).data
    tags = {**outcome.tags, **({NOTE_TAG: outcome.note} if outcome.note else {})}
    now = int(time.time() * 1000)
    metrics = [Metric(n, value, now, 0) for n, value in outcome.metrics.items() if there.metrics.get(n) != value]
    client.log_batch(run, metrics, tags=[RunTag(name, shortened(value, LONGEST_TAG)) for name, value in tags.items()])
    log_params(client, run, outcome.params)
    if (data := outcome.dataset) is not None:
        source = json.dumps({"uri": data.uri})
        dataset = MlflowDataset(data.name, data.digest[:DIGEST_CHARS], "moonflow manifest", source)
        client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "moonflow"


def _experiment(client: Any) -> str:
    name = _experiment_name()
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another step created it in between
        if found is None:
            raise
        return str(found.experiment_id)


def _find_or_create(client: Any, experiment: str, run_id: str, step: str, tags: dict[str, str], began: float) -> str:
    """The run tagged with this run id and step, so that retries write to the first attempt's run."""

    def oldest() -> str:
        query = f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STEP_TAG}` = '{step}'"
        runs = client.search_runs([experiment], query, max_results=10, order_by=["attributes.start_time ASC"])
        return str(min(runs, key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id) if runs else ""

    if found := oldest():
        return found
    name = run_id if step in (PIPELINE, GROUP) else step
    named = {RUN_TAG: run_id, STEP_TAG: step, **tags}
    made = client.create_run(experiment, int(began * 1000), named, run_name=name).info.run_id
    kept = oldest() or made
    if kept != made:
        client.delete_run(made)  # two steps started at once: both keep the older run
    return str(kept)
