"""One pipeline step, from its parameters to its manifest: the only way a stage is ever started.

``run_step`` works the same in ``kfp.local``, in a cluster's pod and in a test: what differs comes from the
environment (``AWS_ENDPOINT_URL_S3``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``,
``MOONFLOW_STORE``, ``MOONFLOW_RUN_ID``, ``MOONFLOW_RUN_DIR``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``,
``MLFLOW_RUN_ID``, ``MOONFLOW_MLFLOW_WAIT_S``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.runtime.checkpoints import manifest
from components.runtime.checkpoints import step_checkpoints as checkpoints
from components.runtime.checkpoints.lineage import Lineage
from components.runtime.checkpoints.manifest import METRICS, ORIGIN, File, Kind, Manifest
from components.runtime.checkpoints.retention import METRICS as LAST_METRICS
from components.runtime.checkpoints.retention import Retention
from components.runtime.checkpoints.step_checkpoints import StoredCheckpoints
from components.runtime.config import StepConfig, TrainingConfig
from components.runtime.steps import config_class, stage_of
from components.runtime.store.object_store import ObjectStore, disk_errors
from components.runtime.store.open_store import open_store
from components.runtime.tracking.progress import Silent, StepProgress
from components.runtime.tracking.tracker import StepMetrics, Tracker, pod_wait_s
from model.boundary.errors import MoonflowError, Transient
from model.boundary.private_folder import private_folder
from model.parallel.ranks import Ranks
from model.train.protocol import Progress
from model.train.stop import Terminated

if TYPE_CHECKING:
    from model.data.batches.folder import DataFolder

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A folder in the store and on disk, and a word in MLflow's queries (source: ours; Kubeflow's ids are UUIDs)."""


class StepContext:
    """All that a stage may touch of the outside world.

    Attributes:
        run_id, step: names in the layout ``<run>/<step>/<index>/``; a step that a pipeline runs several times has the
            name of one task, ``StepConfig.task_name``.
        store: the object store.
        checkpoints: ``latest()`` and ``prepare(...)``, see ``model.checkpoint.publication.Checkpoints``; ``newest`` is
            the manifest last saved or resumed from.
        metrics, progress: see ``model.train.protocol``.
        ranks: this process's place among those that run the step. The first one alone reports.
        work: a local folder of this process, empty at its start.
    """

    def __init__(
        self,
        store: ObjectStore,
        run_id: str,
        step: str,
        run_dir: Path,
        lineage: Lineage,
        tracker: Tracker | None,
        ranks: Ranks,
    ) -> None:
        self.run_id = run_id
        self.step = step
        self.store = store
        self.ranks = ranks
        self.work = run_dir / "work" / (step if ranks.first else f"{step}.{ranks.rank}")
        self._cache = run_dir / "work" / "cache"
        self._lineage = lineage
        self._tracker = tracker
        self._started = time.monotonic()
        prefix = f"{run_id}/{step}"
        with disk_errors(run_dir):
            # First of all: what a dead attempt left may be what fills the disk.
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            start, damaged = checkpoints.resumable(store, prefix, self._cache)
            # What a repeatable step wrote from other parameters or inputs only takes up an index.
            going_on = start is not None and lineage.fits(start)
            self._before: dict[str, Any] = start.extra if start is not None and going_on else {}
            self._warnings: list[str] = list(self._before.get("warnings", []))
            for damage in damaged.values():
                self._warnings.append(f"{damage.what}: went on from the checkpoint before it")
                print(f"{step}: {self._warnings[-1]}", file=sys.stderr, flush=True)
            history = run_dir / "work" / "metrics" / f"{self.work.name}.jsonl"
            history.parent.mkdir(parents=True, exist_ok=True)
            history.unlink(missing_ok=True)
            if start is not None and going_on and any(file.name == METRICS for file in start.files):
                # What the dead attempt logged after its last checkpoint will be logged again: go on from there.
                manifest.fetch_files(store, f"{prefix}/{start.index}", start, self.work, [METRICS])
                shutil.move(self.work / METRICS, history)
        self.metrics = StepMetrics(history, tracker)
        self.progress: Progress = StepProgress(run_dir / "progress", step) if ranks.first else Silent()
        self.checkpoints = StoredCheckpoints(
            store, prefix, self._cache, start, damaged, self._begin, _retention(lineage.config)
        )

    def fetch(self, uri: str, names: Iterable[str] | None = None) -> Path:
        """A verified local copy of the manifest's files at ``uri`` (all, or ``names``), fetched once per machine.

        Do not write into it.
        """
        return checkpoints.restore(self.store, manifest.read(self.store, uri), self._cache, uri, names)

    def warn(self, line: str) -> None:
        """Add a line to the warnings of the manifests that are published from now on."""
        self._warnings.append(line)

    def log_file(self, path: str, text: str) -> None:
        """Keep a small file among the artifacts of the step's MLflow run; without MLflow, nothing is kept.

        ``path`` is relative; what it names is replaced.
        """
        if self._tracker is not None:
            self._tracker.text(path, text)

    def data(self, uri: str) -> DataFolder:
        """The data that prepare_data published at ``uri``; its shards come from the store when they are opened."""
        from components.runtime.datasets.shards import (
            open_data,  # imports torch, which steps without data do not need
        )

        return open_data(self.store, uri, self._cache)

    def publish(
        self,
        folder: Path,
        *,
        kind: Kind,
        complete: bool = True,
        tokens_seen: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Publish ``folder`` as this step's next output; ``extra`` joins the step's own figures in the manifest."""
        begun = self.checkpoints.begin(
            index=self.checkpoints.next_index, kind=kind, complete=complete, tokens_seen=tokens_seen, extra=extra
        )
        return begun.publish(folder)

    def _begin(
        self,
        *,
        kind: Kind,
        index: int,
        complete: bool,
        tokens_seen: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> checkpoints.Publish:
        # Read now: training may go on, and log more, before the folder is published.
        history = self.metrics.history.read_bytes()
        figures = {**self._figures(tokens_seen, history), **(extra or {})}

        def publish(folder: Path, added: Sequence[File]) -> Manifest:
            with disk_errors(folder):
                (folder / METRICS).write_bytes(history)
            return manifest.publish(
                self.store,
                f"{self.run_id}/{self.step}/{index}",
                folder,
                added,
                run_id=self.run_id,
                step=self.step,
                index=index,
                kind=kind,
                complete=complete,
                tokens_seen=tokens_seen,
                config_sha256=self._lineage.config.sha256,
                parents=self._lineage.parents,
                mlflow_run_id=self._tracker.wait_run_id(10.0) if self._tracker else "",
                git_commit=self._lineage.git_commit,
                extra=figures,
                **checkpoints.described(folder),
            )

        return publish

    def _figures(self, tokens: int, history: bytes) -> dict[str, Any]:
        """The newest metrics; and, over all attempts that led to this checkpoint, seconds, tokens and peak memory."""
        seconds = self._before.get("seconds", 0.0) + time.monotonic() - self._started
        return {
            "config": self._lineage.config.model_dump(mode="json"),
            "inputs": dict(self._lineage.inputs),
            "seconds": round(seconds, 3),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 1),
            "peak_rss_bytes": max(self._before.get("peak_rss_bytes", 0), peak_rss_bytes()),
            LAST_METRICS: json.loads(history.splitlines()[-1]) if history else {},
            **({ORIGIN: dict(self._lineage.origin)} if self._lineage.origin else {}),
            **({"warnings": self._warnings} if self._warnings else {}),
        }


def run_step(
    step: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None, ranks: Ranks | None = None
) -> Manifest:
    """Run ``components.<step>`` or return what it has already written under this run id.

    Args:
        step: folder name below ``components``.
        config: values of that step's ``Config``.
        inputs: name -> ``s3://`` URI of a manifest's prefix; empty URIs (optional inputs) are left out.
        ranks: of this process, where several run the step together; each of them calls this.

    Returns:
        The step's complete manifest. An unfinished step is resumed from its newest checkpoint. So is a finished one if
        a parameter of its last part (``AT_THE_END``) has changed.

    Raises:
        MoonflowError: bad parameters, a missing input, an unreachable store, or other parameters under a used run id.
    """
    ranks = ranks or Ranks()
    start = _begin(step, config, inputs)
    store, run_id, lineage = start.store, start.run_id, start.lineage
    parsed, given = lineage.config, lineage.inputs
    if start.complete is not None:
        return start.complete
    run_dir = _run_dir(run_id)
    with disk_errors(run_dir):
        tracker = _tracker(run_dir, run_id, start.name) if ranks.first else None
        context = StepContext(store, run_id, start.name, run_dir, lineage, tracker, ranks)
    status, patient = "FAILED", True
    try:
        stage = stage_of(step)
        if tracker is not None:
            tracker.params({**parsed.model_dump(mode="json"), **{f"input.{name}": uri for name, uri in given.items()}})
            tracker.tags({"mlflow.source.git.commit": lineage.git_commit} if lineage.git_commit else {})
            tracker.start()
        with disk_errors(run_dir):
            output: Manifest = stage.run(parsed, given, context)
        if not output.complete:
            raise RuntimeError(f"stage {step} returned the unfinished manifest {output.uri}")
        if tracker is not None:
            tracker.tags({"moonflow.manifest.uri": output.uri, "moonflow.manifest.sha256": output.sha256})
        status = "FINISHED"
        return output
    except (KeyboardInterrupt, Terminated):
        status, patient = "KILLED", False
        raise
    except Transient:
        patient = False  # the next attempt in this pod sends what is left
        raise
    finally:
        if tracker is not None:
            tracker.close(status, patient=patient)


def complete_manifest(step: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> Manifest | None:
    """The complete manifest that ``step`` has already written under this run id, or None. Starts nothing.

    Takes and raises what ``run_step`` does.
    """
    return _begin(step, config, inputs).complete


@dataclass(frozen=True)
class _Start:
    """A step about to run: where it writes, from what, and its finished output if there is one already."""

    store: ObjectStore
    run_id: str
    name: str
    lineage: Lineage
    complete: Manifest | None


def _begin(step: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None) -> _Start:
    store = open_store()
    run_id = os.environ.get("MOONFLOW_RUN_ID", "")
    check_run_id(run_id, "MOONFLOW_RUN_ID")
    parsed = config_class(step).parse(config, f"step {step}")
    store.check()
    given = {name: uri for name, uri in sorted((inputs or {}).items()) if uri}
    parents = [manifest.read(store, uri) for uri in given.values()]
    origin: dict[str, Any] = next((parent.extra[ORIGIN] for parent in parents if ORIGIN in parent.extra), {})
    lineage = Lineage(parsed, given, tuple(parent.sha256 for parent in parents), git_commit(), origin)
    name = parsed.task_name(step, parsed.model_dump())
    earlier = checkpoints.newest(store, f"{run_id}/{name}")
    if earlier is not None:
        lineage.require(earlier)
    done = earlier is not None and lineage.is_done_by(earlier)
    return _Start(store, run_id, name, lineage, earlier if done else None)


def check_run_id(run_id: str, where: str) -> None:
    """MoonflowError that begins with ``where`` unless ``run_id`` can name a run."""
    if not RUN_ID.fullmatch(run_id):
        raise MoonflowError(
            f"{where} is {run_id[:200]!r}: a run's id has letters, digits, '.', '_' and '-', no slashes, at most 128 "
            "characters, and is the same for all steps"
        )


def git_commit() -> str:
    """MOONFLOW_GIT_COMMIT (set in images), or the checkout's HEAD, or "" outside of one."""
    if commit := os.environ.get("MOONFLOW_GIT_COMMIT"):
        return commit
    here = Path(__file__).resolve().parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of this checkout
    command = ["git", "rev-parse", "--verify", "HEAD"]
    try:
        asked = subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def peak_rss_bytes() -> int:
    """Peak resident memory of this process in bytes."""
    # VmHWM starts again at exec; getrusage's ru_maxrss would count the parent's memory at fork.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _retention(config: StepConfig) -> Retention:
    return Retention(config.keep_last, config.keep_best) if isinstance(config, TrainingConfig) else Retention()


def _run_dir(run_id: str) -> Path:
    if given := os.environ.get("MOONFLOW_RUN_DIR"):
        return Path(given)
    with disk_errors(tempfile.gettempdir()):
        return private_folder(Path(tempfile.gettempdir())) / run_id


def _tracker(run_dir: Path, run_id: str, step: str) -> Tracker | None:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    return Tracker(
        run_dir / "work" / "tracking" / run_id,
        run_id,
        step,
        adopt=os.environ.get("MLFLOW_RUN_ID", ""),
        # Without a run folder the spool lies in the pod's own /tmp.
        wait_s=None if os.environ.get("MOONFLOW_RUN_DIR") else pod_wait_s(),
    )


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metric history of a fetched manifest folder: ``{"step", "time", <metric>: <value>, ...}`` in order."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
