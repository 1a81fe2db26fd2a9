"""Metrics reach MLflow without holding up training: they are written to disk at once and sent by a thread.

Every record is first appended to a spool in the run folder (``components.runtime.tracking.spool``); a thread sends what
is new in batches. While MLflow is away the spool grows, and nothing else happens. What a step could not send before it
ended, the next step of the same run on the same machine sends. In a cluster the spool is lost with its pod, so a step
waits at its end for an absent MLflow, for MOONFLOW_MLFLOW_WAIT_S seconds (300). The history for the report
(``metrics.jsonl``, a file of the step's manifest) does not pass through MLflow.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components.runtime.tracking import mlflow_runs
from components.runtime.tracking.mlflow_runs import RUN_TAG, STEP_TAG, first_line
from components.runtime.tracking.spool import Spool
from model.boundary.errors import MoonflowError

WAIT = "MOONFLOW_MLFLOW_WAIT_S"

_BATCH = 1000  # MLflow's limit of metrics in one request
_SEND_EVERY_S = 1.0
_RETRY_S = 5.0
_FLUSH_S = 10.0
_POD_WAIT_S = 300.0


class StepMetrics:
    """``model.train.protocol.MetricLog``: appends to the step's history and hands the same figures to the tracker."""

    def __init__(self, history: Path, tracker: Tracker | None) -> None:
        """``history`` is the JSON-lines file, ``{"step", "time", <metric>: <value>, ...}`` a line."""
        self.history = history
        self._tracker = tracker
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record ``metrics`` at ``step`` (the trainer's own counter: optimizer steps, rollout steps, suites)."""
        now = time.time()
        values = {name: float(value) for name, value in metrics.items()}
        with self.history.open("a") as stream:
            stream.write(json.dumps({"step": step, "time": now, **values}) + "\n")
        if self._tracker is not None:
            self._tracker.metrics(values, step, now)


class Tracker:
    """The MLflow run of one step: nested under the pipeline's run and continued by retries. It never stops training."""

    def __init__(self, folder: Path, run_id: str, step: str, *, adopt: str = "", wait_s: float | None = None) -> None:
        """``folder`` holds the run's spool files; ``adopt`` is the MLflow run that KFP made for this task, if any.

        ``wait_s``: seconds that ``close`` waits for an absent MLflow, because ``folder`` is lost afterwards; None:
        ``folder`` stays, and a later step sends what it holds.
        """
        self._wait_s = wait_s
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = Spool(folder / f"{step}.jsonl")  # locked: other steps of the run leave it to this one
        self._sender = _Sender(self._spool)
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._known = threading.Event()
        self._uri = os.environ["MLFLOW_TRACKING_URI"]  # kept: a thread must not follow later changes
        self.mlflow_run_id = ""
        self._spool.append({"kind": "run", "run_id": run_id, "step": step, "adopt": adopt, "time": time.time()})
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start sending. Imports mlflow in its thread: call it when the step's own imports are done."""
        self._thread.start()

    def wait_run_id(self, seconds: float) -> str:
        """The MLflow run's id, or "" if MLflow did not answer within ``seconds``."""
        self._known.wait(seconds)
        return self.mlflow_run_id

    def metrics(self, values: Mapping[str, float], step: int, now: float) -> None:
        self._spool.append({"kind": "metrics", "values": dict(values), "at": step, "time": now})

    def params(self, values: Mapping[str, Any]) -> None:
        self._spool.append({"kind": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        self._spool.append({"kind": "tags", "values": dict(values)})

    def text(self, path: str, text: str) -> None:
        """Keep a file among the run's artifacts. One that MLflow cannot store is lost, and everything else goes on."""
        self._spool.append({"kind": "text", "path": path, "text": text})

    def close(self, status: str, *, patient: bool = True) -> None:
        """Mark the run FINISHED, FAILED or KILLED, and wait up to ten seconds for what is unsent to be sent, then
        ``wait_s`` more if ``patient``. What is unsent then stays on disk."""
        if not patient:
            self._wait_s = self._wait_s and 0.0
        self._spool.append({"kind": "end", "status": status, "time": time.time()})
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_FLUSH_S)
            if self._thread.is_alive() and self._wait_s:
                print(f"waiting up to {self._wait_s:g} s for MLflow ({WAIT})", file=sys.stderr, flush=True)
                self._thread.join(self._wait_s)
            self._abandoned.set()
            if link := mlflow_runs.mlflow_link(self.mlflow_run_id):
                print(f"MLflow run: {link}", flush=True)
        if not self._spool.close() and self._thread.ident is not None:
            rest = f"the next step sends what {self._spool.path} keeps"
            if self._wait_s is not None:
                rest = "metrics.jsonl in the step's manifest holds the whole history"
            print(f"MLflow did not take everything: {rest}", file=sys.stderr)

    def _work(self) -> None:
        adopted = False
        failures = 0
        client = None
        while True:
            closing = self._closing.is_set()
            try:
                client = client or mlflow_runs.connect(self._uri)
                self._sender.send(client)
                failures = 0
                self.mlflow_run_id = self._sender.mlflow_run_id
                self._known.set()
                if not adopted:
                    adopted = True
                    self._send_leftovers(client)
                if closing and (self._spool.done or self._abandoned.is_set()):
                    return
                self._closing.wait(_SEND_EVERY_S)
            except Exception as error:  # whatever MLflow's client raises, training goes on
                self._known.set()  # nobody waits for an id that does not come
                failures += 1
                if failures == 1:
                    print(
                        f"MLflow is away, metrics are kept in {self._spool.path} ({first_line(error)})", file=sys.stderr
                    )
                if not closing:
                    self._closing.wait(_RETRY_S)
                elif (failures > 1 and not self._wait_s) or self._abandoned.wait(1.0):  # the last attempt at the end
                    return

    def _send_leftovers(self, client: Any) -> None:
        """Send the spools of earlier steps of this run."""
        for path in self._folder.glob("*.jsonl"):
            if path == self._spool.path:
                continue
            try:
                spool = Spool(path, wait=False)
            except OSError:
                continue  # its step is alive
            try:
                _Sender(spool).send(client)
            finally:
                spool.close()


class _Sender:
    """Sends one spool to the MLflow run of its step."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.mlflow_run_id = ""

    def send(self, client: Any) -> None:
        """Send everything that is new, oldest first. Raises what the client raises; the next call goes on."""
        if not self.mlflow_run_id:
            # The newest header: a retried step uses the file of the attempt before it.
            header = [record for record in self._spool.records() if record["kind"] == "run"][-1]
            about = header["run_id"], header["step"], header["time"]
            self.mlflow_run_id = header["adopt"] or mlflow_runs.of_step(client, *about)
            if header["adopt"]:
                client.set_tag(header["adopt"], RUN_TAG, header["run_id"])
                client.set_tag(header["adopt"], STEP_TAG, header["step"])
            client.update_run(self.mlflow_run_id, status="RUNNING")
        points: list[Any] = []
        end: int | None = None
        for record, after in self._spool.unsent():
            if record["kind"] != "metrics" or len(points) >= _BATCH:
                self._log(client, points, end)
                points = []
            if record["kind"] == "metrics":
                points += _points(record)
            else:
                self._other(client, record)
                self._spool.mark(after)
            end = after
        self._log(client, points, end)

    def _log(self, client: Any, points: list[Any], end: int | None) -> None:
        for start in range(0, len(points), _BATCH):
            batch = points[start : start + _BATCH]
            with _refusals():
                client.log_batch(self.mlflow_run_id, metrics=batch)
        if end is not None:
            self._spool.mark(end)

    def _other(self, client: Any, record: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        if record["kind"] == "text":
            self._store_text(client, record["path"], record["text"])
            return
        values = record.get("values", {})
        with _refusals():
            if record["kind"] == "params":
                mlflow_runs.log_params(client, self.mlflow_run_id, values)
            elif record["kind"] == "tags":
                client.log_batch(self.mlflow_run_id, tags=[RunTag(key, value) for key, value in values.items()])
            elif record["kind"] == "end":
                client.set_terminated(self.mlflow_run_id, record["status"], int(record["time"] * 1000))

    def _store_text(self, client: Any, path: str, text: str) -> None:
        """Files may lie elsewhere than MLflow's own figures, and that place may be away or closed to us for good."""
        try:
            client.log_text(self.mlflow_run_id, text, path)
        except Exception as error:
            client.get_run(self.mlflow_run_id)  # raises if MLflow itself is away; the file is then sent later
            print(f"MLflow did not store {path}: {first_line(error)}", file=sys.stderr)


def pod_wait_s() -> float:
    """Seconds for which a step whose files end with its pod waits for an absent MLflow: MOONFLOW_MLFLOW_WAIT_S, or 300.

    Raises MoonflowError if the variable is not a number of seconds.
    """
    text = os.environ.get(WAIT) or str(_POD_WAIT_S)
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < threading.TIMEOUT_MAX:
            return seconds
    raise MoonflowError(f"{WAIT} is {text!r}: give the seconds to wait for MLflow at a step's end, or leave it out")


@contextmanager
def _refusals() -> Iterator[None]:
    """Skip what MLflow will never take (a metric's name, a changed parameter): it must not hold up what follows."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}:
            raise
        print(f"MLflow refused a record: {first_line(error)}", file=sys.stderr)


def _points(record: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    stamp = int(record["time"] * 1000)
    return [Metric(name, value, stamp, record["at"]) for name, value in record["values"].items()]
