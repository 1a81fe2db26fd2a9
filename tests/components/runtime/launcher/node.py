"""The node of the fake cluster: it runs a TrainJob's container as a process, with what the job says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from tests.components.runtime.launcher.crd import goes_on
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.manifests.overlays import named

Json = dict[str, Any]


class Node:
    """Runs containers with ``environment`` beneath the job's own variables; the ConfigMap's and Secret's values are
    those of ``settings``."""

    def __init__(self, cluster: FakeCluster, settings: dict[str, str], environment: dict[str, str]) -> None:
        self._cluster = cluster
        self.settings = settings
        self._environment = environment
        self.process: subprocess.Popen[str] | None = None
        self._stopped = False
        self.preempt_at = ""  # a line of the log at which the first pod is killed

    def run(self, job: Json, number: int = 0) -> int:
        """Run the trainer's command in pod ``number`` to its end, with its log and state in the API; the exit code."""
        name = job["metadata"]["name"]
        trainer = job["spec"]["trainer"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        placed = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}]
        pod = self._cluster.pod(name, number, conditions=placed)
        self._cluster.touch(name)
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS") if key in os.environ}
        self.process = subprocess.Popen(
            [sys.executable if word == "python" else word for word in trainer["command"]],
            env={**kept, **self._environment, **self._values(trainer["env"])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._cluster.log(pod, line.rstrip("\n"))
            if number == 0 and self.preempt_at and self.preempt_at in line:
                self.kill()
        code = self.process.wait()
        code = 128 - code if code < 0 else code
        state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        if self._cluster.job(name) is not None:
            conditions = []
            if code == 128 + signal.SIGKILL:  # in these tests only a preemption kills
                conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]
            self._cluster.pod(
                name, number, container=state, phase="Failed" if code else "Succeeded", conditions=conditions
            )
            self._cluster.end_log(pod)
            self._cluster.touch(name)
        return code

    def train(self, job: Json) -> None:
        """What Trainer and JobSet do: pods until one succeeds or the runtime's policies end it, then the condition."""
        reference = job["spec"]["runtimeRef"]
        runtime = named("dev/platform", reference["kind"], reference["name"])
        number, code = 0, self.run(job)
        while code and goes_on(runtime, code, number) and self._cluster.job(job["metadata"]["name"]) is not None:
            if self._stopped:
                return
            time.sleep(0.2)
            number += 1
            code = self.run(job, number)
        if self._stopped:
            return
        self._cluster.condition(job["metadata"]["name"], "Failed" if code else "Complete", reason="JobSetFinished")

    def stop(self) -> None:
        """The node is gone; nothing is started again."""
        self._stopped = True
        self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def _values(self, rows: list[Json]) -> dict[str, str]:
        values = {}
        for row in rows:
            if "value" in row:
                values[row["name"]] = row["value"]
                continue
            source = row["valueFrom"].get("configMapKeyRef") or row["valueFrom"]["secretKeyRef"]
            known = {"moonflow", "moonflow-store", "moonflow-mlflow", "moonflow-server-keys"}
            assert source["optional"] and source["name"] in known
            if source["key"] in self.settings:
                values[row["name"]] = self.settings[source["key"]]
        return values
