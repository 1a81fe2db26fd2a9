"""``moonflow serve``: fetch a run's promoted checkpoint from its object store and serve it."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path

from components.release.fetch import bring
from components.release.gitops import read_promoted
from components.release.signing import PUBLIC_KEY
from components.runtime.store.open_store import open_store
from pipelines.profile import step_of_run
from pipelines.run_folder import made_by_a_run, services_folder
from pipelines.services import REPOSITORY, visited


def serve_run(run_dir: Path, port: int, *, dry_run: bool) -> None:
    """Serve the checkpoint that the GitOps repository of ``run_dir`` names, on 127.0.0.1, until interrupted.

    The checkpoint is fetched by its committed address and digest, and all its files and its signature are checked. The
    run's object store is up only meanwhile, unless the run keeps it. ``port`` 0 picks a free one.
    """
    run_dir = made_by_a_run(run_dir)
    config = step_of_run(run_dir, "serve").model_dump()
    promoted = read_promoted(str(run_dir / REPOSITORY), config["environment"])
    port = port or _free_port()
    address = f"http://127.0.0.1:{port}/v1"
    if dry_run:
        print(f"would serve {promoted.uri} (sha256 {promoted.manifest_sha256}) as {config['model_name']} at {address}")
        return
    checkpoint = run_dir / "work" / "served" / promoted.manifest_sha256
    with visited(services_folder(run_dir)) as environment:
        store, public_key = open_store(environment), Path(environment[PUBLIC_KEY])
        bring(store, promoted.uri, promoted.manifest_sha256, checkpoint, public_key)

    from components.serve.server import serve_forever  # imports torch

    print(f"serving {promoted.uri} at {address}; Ctrl-C stops it. Ask it with:", flush=True)
    print(_example(address, config["model_name"]), flush=True)
    serve_forever(checkpoint, "127.0.0.1", port, config["model_name"], promoted.manifest_sha256)


def _example(address: str, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16})
    return f"  curl -s {address}/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
