"""The serve check: the checkpoint that Git names as promoted is asked a question over real HTTP.

If the configuration names the environment's endpoint, the step asks there, as soon as it answers from the promoted
weights; the endpoint's init container has fetched and verified them. With ``engine`` "sglang" it asks each of the
environment's replicas in the same way. Otherwise the step fetches, verifies and serves the checkpoint in this process,
which does not test a synced endpoint. A promotion by pull request waits here for its merge. The checkpoint that has
answered becomes the champion.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import uvicorn

from components.release import signing
from components.release.champion import crown, repository_from_env
from components.release.fetch import bring
from components.release.registry import Version
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.serve.config import Config
from components.serve.connection import OPTIONS
from components.serve.endpoint import ask, await_answer
from components.serve.merge import promoted_as
from components.serve.replicas import await_replicas
from components.serve.server import create_app
from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.rollout.addresses import parse_addresses


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. What was committed, not what is in memory.
    repository = repository_from_env()
    public_key = signing.given_key(signing.PUBLIC_KEY)
    remote = config.endpoint or config.endpoints
    if public_key is None and not remote:
        raise MoonflowError(
            "no public key to verify the promoted checkpoint with: create the ConfigMap moonflow-signing-public, key "
            "public.pem, in the namespace of the pipeline's runs (manifests/README.md, Secrets), or give the key's "
            f"path in {signing.PUBLIC_KEY}"
        )
    record = manifests.read(context.store, inputs["promotion"]).extra
    promoted = promoted_as(repository, config.environment, record, config.merge_timeout, context.progress)

    # 2. A question about a picture that no stage has seen.
    data = context.data(inputs["data"])
    sample = next(data.samples(config.family, "eval"))
    question, image = as_question(sample)

    # 3. Over HTTP, with the client that users have. Without an endpoint, bytes and signature are checked here first.
    put = partial(ask, model_name=config.model_name, question=question, image=image, max_tokens=config.max_tokens)
    if config.endpoint:
        answer = await_answer(put, config.endpoint, promoted.manifest_sha256, config.start_timeout, context.progress)
    elif config.endpoints:
        answer = await_replicas(
            parse_addresses(config.endpoints), sample, data.tokenizer, data.image_config, promoted.manifest_sha256,
            max_tokens=config.max_tokens, timeout=config.start_timeout, progress=context.progress,
        )  # fmt: skip
    else:
        checkpoint = context.work / "checkpoint"
        bring(context.store, promoted.uri, promoted.manifest_sha256, checkpoint, public_key)
        with serving(checkpoint, config.model_name, config.start_timeout, promoted.manifest_sha256) as address:
            answer = put(address)

    # 4. It answered: the registry's alias follows.
    version = Version(record["model_name"], record["version"], {})
    crown(repository, config.environment, config.alias, version, promoted.commit)
    extra = {
        "question": question,
        "answer": answer.text,
        "expected": str(sample.answer),
        "image": image,
        "endpoint": remote,
        "endpoint_checked": remote != "",  # False: it answered in this process only
        "signature_checked": remote == "",  # False: checked by the endpoint's init container
        "commit": promoted.commit,
        "manifest_sha256": promoted.manifest_sha256,
    }
    folder = context.work / "answer"
    folder.mkdir()
    (folder / "serve.json").write_text(json.dumps(extra, indent=2) + "\n")
    return context.publish(folder, kind="evals", complete=True, extra=extra)


def as_question(sample: Sample) -> tuple[str, str]:
    """Text and picture (a data URL) of a task that shows one image; raises MoonflowError for another kind."""
    parts = sample.messages[0]["content"]
    images = [part["media"] for part in parts if isinstance(part, dict) and part["type"] == "image"]
    if len(images) != 1:
        raise MoonflowError(f"serve: family {sample.family!r} does not ask about one image; set family to digit_string")
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    return text, "data:image/png;base64," + base64.b64encode(sample.media[images[0]]).decode()


@contextmanager
def serving(checkpoint: Path, model_name: str, timeout: float, sha256: str = "") -> Iterator[str]:
    """A server on a free loopback port while the body runs; yields its address. It cannot outlive this process.

    ``sha256`` is the digest of the checkpoint's manifest, if it is known from elsewhere (``release.fetch.verify``).

    Raises:
        MoonflowError: the checkpoint cannot be loaded, or not within ``timeout`` seconds.
    """
    app = create_app(checkpoint, model_name, sha256)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **OPTIONS))
    thread = threading.Thread(target=server.run, name="serve", daemon=True)
    thread.start()
    try:
        yield _address(server, thread, timeout)
    finally:
        server.should_exit = True
        thread.join(30)


def _address(server: uvicorn.Server, thread: threading.Thread, timeout: float) -> str:
    """Wait until the server listens and its model is loaded."""
    deadline = time.monotonic() + timeout
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise MoonflowError("the server did not start; see its messages above")
        time.sleep(0.02)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    while True:
        health = httpx.get(f"{address}/health", timeout=timeout, trust_env=False)
        if health.status_code == 200:
            return address
        if health.status_code == 500:
            raise MoonflowError(f"the server cannot serve the checkpoint: {health.json()['error']}")
        if time.monotonic() > deadline:
            raise MoonflowError(f"the server is not ready after {timeout:g} s: {health.text[:200]}")
        time.sleep(0.05)
