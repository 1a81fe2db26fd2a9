"""How long a save stops training, and how fast checkpoints are saved and restored compared with plain boto3.

    python tests/benchmarks/checkpoint_speed.py [--repeats 3] [--width 5] [--json]

The store is SeaweedFS as a local run starts it; the model is ``--width`` times as wide as the tiny preset and has
MuonClip's state. One training thread takes steps throughout.

- ``stall_fraction``: seconds that ``AsyncSaver.save`` stops the training thread, divided by the seconds of the same
  save without it (safetensors, SHA-256, upload, manifest). The mean includes the first save, which allocates the
  buffers.
- ``lost_fraction``: the same, plus the time by which steps during a save are slower, because both share the cores.
- ``save_ratio``: seconds of boto3's multi-part ``upload_file`` of the checkpoint's files, divided by the seconds of
  publishing that folder (hashes, upload, manifest). ``restore_ratio``: the same for ``download_file`` and a verified
  fetch. ``round_trip_ratio``: both together. ``whole_save_ratio``: our side also writes the safetensors.

Both sides take turns; ratios are of sums. Expect about two minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
import torch
from botocore.config import Config as BotoConfig

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.runtime.checkpoints import manifest as manifests  # noqa: E402
from components.runtime.checkpoints.manifest import File, Manifest  # noqa: E402
from components.runtime.checkpoints.step_checkpoints import Publish, StoredCheckpoints  # noqa: E402
from components.runtime.store.object_store import ObjectStore  # noqa: E402
from components.runtime.store.open_store import open_store
from model.checkpoint.saving import AsyncSaver  # noqa: E402
from model.network.batch import Batch  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.optimizer.optimization import Optimization  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from pipelines.services import Services  # noqa: E402
from pipelines.services.commands import BUCKET  # noqa: E402
from tests.benchmarks.model_speed import text_batch, widened  # noqa: E402
from tests.tiny_folders import tiny_tokenizer  # noqa: E402
from tests.training import save_checkpoint, take_step  # noqa: E402


def stored(store: ObjectStore, cache: Path) -> StoredCheckpoints:
    def begin(*, index: int, **fields: Any) -> Publish:
        def publish(folder: Path, added: Sequence[File]) -> Manifest:
            told = {"run_id": "speed", "step": "training", "index": index, **fields}
            return manifests.publish(store, f"speed/training/{index}", folder, added, **told)

        return publish

    return StoredCheckpoints(store, "speed/training", cache, None, {}, begin)


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


class Noted:
    """Checkpoints that tell whether one is on its way."""

    def __init__(self, inside: StoredCheckpoints) -> None:
        self.inside, self.saving = inside, threading.Event()

    def latest(self) -> Path | None:
        return self.inside.latest()

    def prepare(self, **fields: Any) -> Noted:
        self.outgoing = self.inside.prepare(**fields)
        self.saving.set()
        return self

    def publish(self, folder: Path, added: Sequence[Any] = ()) -> None:
        try:
            self.outgoing.publish(folder, added)
        finally:
            self.saving.clear()


class Training:
    """A model that learns, as wide as asked."""

    def __init__(self, width: int) -> None:
        self.model = new_model(widened(width), seed=0).train()
        self.engine = PlainEngine(self.model, Optimization(10**9, 1e-3, products="bfloat16"))
        self.batch: Batch = text_batch(0, rows=1)
        self.step()  # now the optimizer has a state

    def step(self) -> None:
        take_step(self.engine, self.batch)

    def save(self, saver: AsyncSaver, index: int) -> None:
        saver.save(
            self.model.config, self.model.state_dict(), self.engine.named_state(), {"loop": {"step": index}},
            index=index, tokens_seen=0, complete=False,
        )  # fmt: skip


def stalls(training: Training, checkpoints: Noted, work: Path, tokenizer: Path, repeats: int) -> dict[str, float]:
    """Seconds per save: synchronous, kept from training by an asynchronous one, and lost in all."""
    alone = sum(seconds(training.step) for _ in range(10)) / 10
    sync_s, stall_s, during_s = 0.0, 0.0, 0.0
    with AsyncSaver(checkpoints, work, tokenizer) as saver:  # type: ignore[arg-type]
        for number in range(repeats):
            folder = work / "synchronous"

            def synchronous(folder: Path = folder, index: int = 2 * number) -> None:
                save_checkpoint(folder, training.model, tokenizer, training.engine, {"loop": {"step": index}})
                checkpoints.prepare(index=index, tokens_seen=0, complete=False).publish(folder)

            sync_s += seconds(synchronous)
            shutil.rmtree(folder)
            training.step()
            stall_s += seconds(lambda index=2 * number + 1: training.save(saver, index))  # type: ignore[misc]
            while checkpoints.saving.is_set():
                during_s += seconds(training.step) - alone
            stall_s += seconds(saver.wait)
    return {
        "step_seconds": alone,
        "sync_seconds": sync_s / repeats,
        "stall_seconds": stall_s / repeats,
        "stall_fraction": stall_s / sync_s,
        "lost_fraction": (stall_s + during_s) / sync_s,
    }


def travel(
    training: Training, store: ObjectStore, client: Any, work: Path, tokenizer: Path, n: int
) -> dict[str, float]:
    """Seconds of whole saves and restores, ours and boto3's, on the same files."""
    folder, spent = work / "files", dict.fromkeys(("write", "publish", "fetch", "put", "get"), 0.0)
    for number in range(n):
        spent["write"] += seconds(
            lambda: save_checkpoint(folder, training.model, tokenizer, training.engine, {"loop": {}})
        )
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        prefix, told = f"speed/ours/{number}", {"run_id": "speed", "step": "ours", "index": number}

        def ours(prefix: str = prefix, told: dict[str, Any] = told) -> None:
            manifests.publish(store, prefix, folder, kind="checkpoint", **told)

        def plain(number: int = number, paths: list[Path] = paths) -> None:
            for path in paths:
                client.upload_file(str(path), BUCKET, f"raw/{number}/{path.name}")

        def fetched(prefix: str = prefix) -> None:
            manifests.fetch(store, prefix, work / "fetched")

        def downloaded(number: int = number, paths: list[Path] = paths) -> None:
            (work / "raw").mkdir()
            for path in paths:
                client.download_file(BUCKET, f"raw/{number}/{path.name}", str(work / "raw" / path.name))

        sides: list[tuple[str, Callable[[], None]]] = [("publish", ours), ("put", plain)]
        for key, action in sides if number % 2 else reversed(sides):
            spent[key] += seconds(action)
        sides = [("fetch", fetched), ("get", downloaded)]
        for key, action in sides if number % 2 else reversed(sides):
            spent[key] += seconds(action)
        for done in ("fetched", "raw"):
            shutil.rmtree(work / done)
        for key in store.list(prefix):
            store.delete(key)
        for path in paths:
            client.delete_object(Bucket=BUCKET, Key=f"raw/{number}/{path.name}")
    size = sum(path.stat().st_size for path in folder.iterdir())
    each = {f"{key}_seconds": value / n for key, value in spent.items()}
    return each | {
        "mebibytes": size / 2**20,
        "save_ratio": spent["put"] / spent["publish"],
        "whole_save_ratio": spent["put"] / (spent["publish"] + spent["write"]),
        "restore_ratio": spent["get"] / spent["fetch"],
        "round_trip_ratio": (spent["put"] + spent["get"]) / (spent["publish"] + spent["fetch"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=5, help="times the tiny preset's")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(options.width)
    with tempfile.TemporaryDirectory() as name, Services.start(Path(name) / "services") as services:
        work, environment = Path(name), services.environment
        tiny_tokenizer().save(work / "tokenizer")
        store = open_store(environment)
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=BotoConfig(s3={"addressing_style": "path"}),
        )
        figures = travel(training, store, client, work, work / "tokenizer", options.repeats)
        figures |= stalls(training, Noted(stored(store, work / "cache")), work, work / "tokenizer", options.repeats)
    figures = {key: round(value, 4) for key, value in figures.items()}
    if options.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:18} {value:10.3f}")


if __name__ == "__main__":
    main()
