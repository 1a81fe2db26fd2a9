"""Kill a training step again and again with SIGKILL: does it end with the same bits?

    python tests/benchmarks/crash.py [--points 20] [--seed 0] [--json]

``joint_pretrain`` runs as in a pipeline, in float32 on a little real data. Its checkpoints are in SeaweedFS, which it
reaches through a proxy. The first run is undisturbed. Then, for each point, a new run is killed and started again:

- ``step``: killed at a random moment of the training, perhaps while it saves.
- ``save``: killed during the upload of a checkpoint's file, a random one of all.
- ``short``: an upload reaches the store cut in half; killed up to a second later, perhaps while it retries.
- ``error``: the store answers 500 to some uploads; killed up to three seconds later.
- ``hang``: an upload gets no answer; killed within seconds, but at the first such point after 30 s of silence.
- ``torn``: killed after two checkpoints are published; then the largest file of the newest is cut short in the store.
  (If there is only one checkpoint and it is damaged, a step refuses to continue and says so. It never begins anew by
  itself.)

A point survives if what was published at the kill can be fetched and verified (except at ``torn``), if every loss that
the killed and the resumed process logged equals the undisturbed run's, and if the final weights, optimizer and data
position have the same bits. ``tried`` counts the points whose process was really killed, ``survived_fraction`` is the
share of them that survived. Everything random comes from the printed seed. Expect five minutes or more, depending on
the load of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.runtime.checkpoints import manifest  # noqa: E402
from components.runtime.checkpoints import step_checkpoints as checkpoints
from components.runtime.checkpoints.manifest import Manifest  # noqa: E402
from components.runtime.step import read_metrics  # noqa: E402
from components.runtime.store.open_store import open_store  # noqa: E402
from pipelines.services import Services  # noqa: E402
from tests.faults.proxy import FlappingStore  # noqa: E402

STEP = "joint_pretrain"
KINDS = ("step", "save", "short", "error", "hang", "torn")
SETTINGS = {"steps": 24, "rows": 1, "tokens_per_row": 128, "products": "float32", "checkpoint_every": 4}
UPLOADS = 10  # of one checkpoint, at least
SILENCE_S = 30.0
PATIENCE_S = 240.0  # for one process, on a busy machine
COMPARED = ("model.safetensors", "optimizer-00000-of-00001.safetensors")


class Trap(FlappingStore):
    """A proxy that spoils ``count`` uploads of checkpoints, from number ``first`` on, with the fault ``kind``."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream, hang_s=SILENCE_S)
        self.sprung = threading.Event()
        self._uploads = itertools.count(1)
        self._spoils = range(0)
        self._kind = ""

    def arm(self, kind: str, first: int, count: int = 1) -> None:
        self.sprung.clear()
        self._uploads, self._spoils, self._kind = itertools.count(1), range(first, first + count), kind

    def choose(self, command: str, path: str) -> str:
        if command != "PUT" or f"/{STEP}/" not in path or next(self._uploads) not in self._spoils:
            return ""
        self.sprung.set()
        return self._kind


@dataclass(frozen=True)
class Point:
    """Where a process is killed: ``wait_s`` seconds after step or upload ``at``, depending on ``kind``."""

    kind: str
    at: int
    wait_s: float
    burst: int = 1

    @classmethod
    def draw(cls, kind: str, random_: random.Random, steps: int, every: int, whole_silence: bool) -> Point:
        uploads = random_.randint(1, UPLOADS * (steps // every - 1))
        if kind in ("step", "torn"):
            return cls(kind, random_.randint(1 if kind == "step" else 2 * every, steps - 1), random_.uniform(0, 0.2))
        longest = {"save": 0.2, "short": 1.0, "error": 3.0, "hang": 3.0}[kind]
        wait_s = random_.uniform(0, longest) + (SILENCE_S if whole_silence else 0.0)
        return cls(kind, uploads, wait_s, random_.randint(2, 6) if kind == "error" else 1)


def train(environment: Mapping[str, str], inputs: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """The process that is killed: one step of a pipeline, which logs every loss."""
    os.setsid()  # so that a kill ends whatever it starts, as in a pod
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_", "MOONFLOW_"))]:
        del os.environ[name]
    os.environ |= environment
    import torch

    from components.runtime.step import run_step
    from model.train import loop

    torch.set_num_threads(1)
    loop.LOG_EVERY = 1
    run_step(STEP, settings, inputs)


class Bench:
    """A store with the inputs of the step, and the undisturbed run, with which all others are compared."""

    def __init__(self, services: Services, trap: Trap, work: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
        self.environment = {key: value for key, value in services.environment.items() if not key.startswith("MLFLOW_")}
        self.environment["AWS_ENDPOINT_URL_S3"] = trap.address
        self.store = open_store(services.environment)  # past the proxy
        self.trap, self.work, self.settings = trap, work, settings
        self.prefix = f"crash-{uuid.uuid4().hex[:8]}"
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        # Modules are imported once, and each process is a fork of that state.
        self.context.set_forkserver_preload(["components.joint_pretrain.stage", "components.runtime.step"])
        self.inputs = self._inputs()
        process = self.start("whole")
        process.join(PATIENCE_S)
        if process.exitcode != 0:
            raise RuntimeError(f"the undisturbed run ended with {process.exitcode}")
        self.whole = self.outcome("whole")
        if [row["step"] for row in self.whole["losses"]] != list(range(1, settings["steps"] + 1)):
            raise RuntimeError("the undisturbed run did not log every step once")

    def _inputs(self) -> dict[str, str]:
        from model.data.families import FAMILIES
        from model.data.order.family_shares import TEXT, VISION
        from model.data.samples.shards import write_shard
        from tests.tiny_folders import tiny_tokenizer, write_checkpoint

        data = self.work / "data"
        tiny_tokenizer().save(data)
        families = {}
        for name in (*TEXT, *VISION):
            (data / f"{name}.tar").write_bytes(write_shard(FAMILIES[name].sample(0, "train", n) for n in range(6)))
            families[name] = {"train": [{"shard": f"{name}.tar", "samples": 6}], "eval": []}
        (data / "index.json").write_text(json.dumps({"families": families, "image": {}}))
        parent = write_checkpoint(self.work / "parent", seed=3)
        told: dict[str, Any] = {"run_id": self.prefix, "index": 0, "step": "made"}
        return {
            name: manifest.publish(self.store, f"{self.prefix}/{name}/0", folder, kind=kind, **told).uri
            for name, folder, kind in (("data", data, "data"), ("parent", parent, "checkpoint"))
        }

    def run_dir(self, name: str) -> Path:
        return self.work / "runs" / name

    def start(self, name: str) -> ForkServerProcess:
        environment = self.environment | {
            "MOONFLOW_RUN_ID": f"{self.prefix}-{name}", "MOONFLOW_RUN_DIR": str(self.run_dir(name)),
        }  # fmt: skip
        process = self.context.Process(target=train, args=(environment, self.inputs, self.settings))
        process.start()
        return process

    def logged(self, name: str) -> list[dict[str, float]]:
        """The complete lines of the history that the process has written so far."""
        path = self.run_dir(name) / "work" / "metrics" / f"{STEP}.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def newest(self, name: str) -> Manifest | None:
        return checkpoints.newest(self.store, f"{self.prefix}-{name}/{STEP}")

    def outcome(self, name: str) -> dict[str, Any]:
        """What must be the same in all runs: the losses of every step, digests, and data position."""
        made = self.newest(name)
        if made is None or not made.complete:
            raise RuntimeError(f"{name} has no complete manifest")
        with tempfile.TemporaryDirectory() as folder:
            manifest.fetch(self.store, made.uri, Path(folder))
            losses = [_losses(row) for row in read_metrics(Path(folder))]
            state = json.loads((Path(folder) / "training_state.json").read_text())
        digests = {file.name: file.sha256 for file in made.files if file.name in COMPARED}
        return {"losses": losses, "digests": digests, "position": state["data_position"], "rng": state["rng"]}

    def _passed(self, name: str, point: Point) -> bool:
        if len(self.logged(name)) < point.at:
            return False
        if point.kind != "torn":
            return True
        found = self.newest(name)
        return found is not None and found.index > 0

    def attempt(self, name: str, point: Point) -> dict[str, Any] | None:
        """Kill a run at a point and resume it; returns the result, or None if the run had ended before."""
        spoils = {"save": "hang", "hang": "hang", "short": "short", "error": "error"}
        if point.kind in spoils:
            self.trap.arm(spoils[point.kind], point.at, point.burst)
        process = self.start(name)
        begun, reached = time.monotonic(), False
        while process.is_alive() and not reached:
            if time.monotonic() - begun > PATIENCE_S:
                raise RuntimeError(f"{name}: {point} was not reached in {PATIENCE_S:.0f} s")
            time.sleep(0.003)
            reached = self.trap.sprung.is_set() if point.kind in spoils else self._passed(name, point)
        process.join(point.wait_s)
        try:
            os.killpg(process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()
        self.trap.arm("", 0, 0)
        if process.exitcode != -signal.SIGKILL:
            return None
        first, found = [_losses(row) for row in self.logged(name)], self.newest(name)
        told: dict[str, Any] = {"killed_at": len(first), "published": -1 if found is None else found.index}
        if point.kind == "torn":
            assert found is not None
            largest = max(found.files, key=lambda file: file.size).path
            self.store.put(f"{found.uri}/{largest}", self.store.get(f"{found.uri}/{largest}")[: 2**20])
        elif found is not None:
            with tempfile.TemporaryDirectory() as folder:  # raises if something is missing or damaged
                manifest.fetch(self.store, found.uri, Path(folder))
        process = self.start(name)
        process.join(PATIENCE_S)
        same = process.exitcode == 0
        if same:
            made = self.outcome(name)
            told["differs"] = [key for key, value in self.whole.items() if made[key] != value]
            if first != self.whole["losses"][: len(first)]:
                told["differs"].append("losses before the kill")
            same = not told["differs"]
        shutil.rmtree(self.run_dir(name), ignore_errors=True)
        return told | {"survived": same, "exit": process.exitcode}


def _losses(row: Mapping[str, float]) -> dict[str, float]:
    """A logged row without the fields that depend on the clock."""
    return {key: value for key, value in row.items() if key not in ("time", "tokens/s")}


def run(bench: Bench, points: int, seed: int, kinds: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    """Try ``points`` points, the kinds in turn, and print each."""
    random_, results, silent = random.Random(seed), [], False
    steps, every = bench.settings["steps"], bench.settings["checkpoint_every"]
    for number in range(3 * points):
        if len(results) == points:
            break
        kind = kinds[len(results) % len(kinds)]
        whole_silence = kind == "hang" and points >= 20 and not silent
        point = Point.draw(kind, random_, steps, every, whole_silence)
        begun = time.monotonic()
        told = bench.attempt(f"{number}", point)
        if told is not None:
            silent = silent or whole_silence
            results.append(told)
        said = "had ended before" if told is None else " ".join(f"{key}={value}" for key, value in told.items())
        print(f"{time.monotonic() - begun:5.1f} s  {point}: {said}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    begun = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory() as name,
        Services.start(Path(name) / "services") as services,
        Trap(services.environment["AWS_ENDPOINT_URL_S3"]) as trap,
    ):
        bench = Bench(services, trap, Path(name))
        print(f"seed {options.seed}; the undisturbed run is there after {time.monotonic() - begun:.0f} s", flush=True)
        results = run(bench, options.points, options.seed)
    survived = sum(told["survived"] for told in results)
    figures = {
        "seed": options.seed,
        "tried": len(results),
        "survived": survived,
        "survived_fraction": survived / max(1, len(results)),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(figures) if options.json else " ".join(f"{key}={value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
