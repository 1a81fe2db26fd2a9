"""MLflow without a leash: metrics are written to disk at once and sent by a background thread.

Every record is first appended to a spool file in the run folder; a thread sends what is new in batches. If MLflow is
away the spool grows and nothing else happens; what a step could not send before it ended is sent by the next step
of the same run on the same machine. In a cluster the spool ends with its pod, so the step waits at its end for an
absent MLflow, MOONFLOW_MLFLOW_WAIT_S seconds (300). The history for the report (``metrics.jsonl``, a file of the step's
manifest) does not pass through MLflow.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from components.runtime import mlflow_runs
from components.runtime.mlflow_runs import RUN_TAG, STEP_TAG, first_line
from model.errors import MoonflowError

WAIT = "MOONFLOW_MLFLOW_WAIT_S"

_BATCH = 1000  # MLflow's limit of metrics in one request
_SEND_EVERY_S = 1.0
_RETRY_S = 5.0
_FLUSH_S = 10.0
_POD_WAIT_S = 300.0


class StepMetrics:
    """``model.train.protocol.Metrics``: appends to the step's history and hands the same figures to the tracker."""

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
    """The MLflow run of one step: nested under the pipeline's run, adopted again by retries, never in the way."""

    def __init__(self, folder: Path, run_id: str, step: str, *, adopt: str = "", wait_s: float | None = None) -> None:
        """``folder`` holds the run's spool files; ``adopt`` is the MLflow run that KFP made for this task, if any.

        ``wait_s``: seconds that ``close`` waits for an absent MLflow, because nobody finds ``folder`` afterwards; None:
        a later step sends what it holds.
        """
        self._wait_s = wait_s
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{step}.jsonl"
        self._stream = self._path.open("a+")
        # The lock tells other steps of the run that this spool has a living sender.
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        if self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n"):
            self._stream.write("\n")  # a killed attempt tore its last line: start a line of our own
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._known = threading.Event()
        self._uri = os.environ["MLFLOW_TRACKING_URI"]  # kept: a thread must not follow later changes
        self._spool = _Spool(self._path)
        self.mlflow_run_id = ""
        self._append({"kind": "run", "run_id": run_id, "step": step, "adopt": adopt, "time": time.time()})
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start sending. Imports mlflow in its thread: call it when the step's own imports are done."""
        self._thread.start()

    def wait_run_id(self, seconds: float) -> str:
        """The MLflow run's id, or "" if MLflow did not answer within ``seconds``."""
        self._known.wait(seconds)
        return self.mlflow_run_id

    def metrics(self, values: Mapping[str, float], step: int, now: float) -> None:
        self._append({"kind": "metrics", "values": dict(values), "at": step, "time": now})

    def params(self, values: Mapping[str, Any]) -> None:
        self._append({"kind": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        self._append({"kind": "tags", "values": dict(values)})

    def close(self, status: str, *, patient: bool = True) -> None:
        """Mark the run FINISHED, FAILED or KILLED and wait up to ten seconds for what is unsent, then ``wait_s`` more
        if ``patient``; the rest stays."""
        if not patient:
            self._wait_s = self._wait_s and 0.0
        self._append({"kind": "end", "status": status, "time": time.time()})
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_FLUSH_S)
            if self._thread.is_alive() and self._wait_s:
                print(f"waiting up to {self._wait_s:g} s for MLflow ({WAIT})", file=sys.stderr, flush=True)
                self._thread.join(self._wait_s)
            self._abandoned.set()
            if link := mlflow_runs.mlflow_link(self.mlflow_run_id):
                print(f"MLflow run: {link}", flush=True)
        with self._guard:
            if self._spool.done():
                self._spool.remove()
            elif self._thread.ident is not None:
                rest = f"the next step sends what {self._path} keeps"
                if self._wait_s is not None:
                    rest = "metrics.jsonl in the step's manifest holds the whole history"
                print(f"MLflow did not take everything: {rest}", file=sys.stderr)
            self._stream.close()

    def _append(self, record: dict[str, Any]) -> None:
        # A full disk or a closed file must not stop training: the step's own files will report it.
        with self._guard, suppress(OSError, ValueError):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def _work(self) -> None:
        adopted = False
        failures = 0
        client = None
        while True:
            closing = self._closing.is_set()
            try:
                client = client or mlflow_runs.connect(self._uri)
                self._spool.send(client)
                failures = 0
                self.mlflow_run_id = self._spool.mlflow_run_id
                self._known.set()
                if not adopted:
                    adopted = True
                    self._send_leftovers(client)
                if closing and (self._spool.done() or self._abandoned.is_set()):
                    return
                self._closing.wait(_SEND_EVERY_S)
            except Exception as error:  # whatever MLflow's client raises, training goes on
                self._known.set()  # nobody waits for an id that does not come
                failures += 1
                if failures == 1:
                    print(f"MLflow is away, metrics are kept in {self._path} ({first_line(error)})", file=sys.stderr)
                if not closing:
                    self._closing.wait(_RETRY_S)
                elif (failures > 1 and not self._wait_s) or self._abandoned.wait(1.0):  # the last attempt at the end
                    return

    def _send_leftovers(self, client: Any) -> None:
        """Send the spools that earlier steps of this run left behind."""
        for path in self._folder.glob("*.jsonl"):
            if path == self._path:
                continue
            with path.open("a") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue  # its step is alive
                spool = _Spool(path)
                spool.send(client)
                if spool.done():
                    spool.remove()


class _Spool:
    """One spool file and how far it is sent; the offset is kept beside it so that a restart does not send twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = path.with_suffix(".sent")
        self.mlflow_run_id = ""
        with suppress(OSError, ValueError):
            self._offset = int(self._sent.read_text())
            return
        self._offset = 0

    def done(self) -> bool:
        return self._path.exists() and self._offset >= self._path.stat().st_size

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._sent.unlink(missing_ok=True)

    def send(self, client: Any) -> None:
        """Send everything that is new, oldest first; raises what the client raises and keeps its place."""
        if not self.mlflow_run_id:
            with self._path.open() as stream:
                # The newest header: a retried step reuses the file of a dead one.
                header = [record for record, _ in _records(stream, 0) if record["kind"] == "run"][-1]
            about = header["run_id"], header["step"], header["time"]
            self.mlflow_run_id = header["adopt"] or mlflow_runs.of_step(client, *about)
            if header["adopt"]:
                client.set_tag(header["adopt"], RUN_TAG, header["run_id"])
                client.set_tag(header["adopt"], STEP_TAG, header["step"])
            client.update_run(self.mlflow_run_id, status="RUNNING")
        with self._path.open() as stream:
            points: list[Any] = []
            pending = self._offset
            for record, end in _records(stream, self._offset):
                if record["kind"] != "metrics" or len(points) >= _BATCH:
                    self._log(client, points, pending)
                    points = []
                if record["kind"] == "metrics":
                    points += _points(record)
                else:
                    self._other(client, record)
                    self._mark(end)
                pending = end
            self._log(client, points, pending)

    def _log(self, client: Any, points: list[Any], end: int) -> None:
        for start in range(0, len(points), _BATCH):
            batch = points[start : start + _BATCH]
            with _refusals():
                client.log_batch(self.mlflow_run_id, metrics=batch)
        self._mark(end)

    def _other(self, client: Any, record: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        values = record.get("values", {})
        with _refusals():
            if record["kind"] == "params":
                mlflow_runs.log_params(client, self.mlflow_run_id, values)
            elif record["kind"] == "tags":
                client.log_batch(self.mlflow_run_id, tags=[RunTag(key, value) for key, value in values.items()])
            elif record["kind"] == "end":
                client.set_terminated(self.mlflow_run_id, record["status"], int(record["time"] * 1000))

    def _mark(self, end: int) -> None:
        self._offset = end
        with suppress(OSError):
            self._sent.write_text(str(end))


def pod_wait_s() -> float:
    """Seconds for which a step whose files end with its pod waits for an absent MLflow: MOONFLOW_MLFLOW_WAIT_S, or 300.

    Raises MoonflowError for what is no number of seconds.
    """
    text = os.environ.get(WAIT) or str(_POD_WAIT_S)
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < threading.TIMEOUT_MAX:
            return seconds
    raise MoonflowError(f"{WAIT} is {text!r}: give the seconds to wait for MLflow at a step's end, or leave it out")


def _records(stream: IO[str], offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole lines from ``offset`` (bytes; the spool is ASCII) and the offset behind each; torn lines are skipped."""
    stream.seek(offset)
    position = offset
    while (line := stream.readline()).endswith("\n"):
        position += len(line)
        with suppress(ValueError):
            yield json.loads(line), position


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
