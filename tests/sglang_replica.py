"""A small server in the place of a remote SGLang, which really generates: moonflow's own engine answers behind it.

It speaks SGLang 0.5.23's /generate, /health, /model_info, /update_weights_from_disk and /weights_checker, as its
http_server.py, tokenizer_manager.py and weight_checker.py have them: weights are loaded when nothing is generated, and
what is generated until then is aborted, if that is asked for. It can be killed and started again, hang, fail, send
half an answer, and keep old or damaged weights.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_image_config, load_model
from model.codec.image import encode_image
from model.network.multimodal import KimiK25
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.http_server import Handler, free_port

EOS_AND_END = "generation_config.json"


@dataclass(frozen=True)
class Served:
    """One whole answer to /generate that was sent."""

    prompt: tuple[int, ...]
    seed: int
    version: str


class SGLangReplica:
    """A replica on 127.0.0.1 that was started with a checkpoint folder.

    Attributes:
        served: the answers that it has sent in whole.
        faults: answers to the next requests of /generate instead of its own: "500", "half" or "kill".
        hangs: nothing is answered as long as it is set, not even /health.
        refuses_weights, damages_weights: it loads no weights; one tensor is wrong after loading.
        slow_s: seconds before each generation. token_s: seconds after each token.
        most: the most generations at once.
        sampled: tokens of all generations.
        breaks_off_at: a token after which a generation waits until it is aborted; None: there is none.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.port = checkpoint, free_port()
        self.served: list[Served] = []
        self.faults: list[str] = []
        self.hangs = threading.Event()
        self.refuses_weights = self.damages_weights = False
        self.slow_s, self.token_s, self.most, self.sampled, self._running = 0.0, 0.0, 0, 0, 0
        self.breaks_off_at: int | None = None
        self._changed, self._updating, self._aborts = threading.Condition(), False, list[threading.Event]()
        self.pushes = 0
        self._server: _Server | None = None
        self._loop = asyncio.new_event_loop()
        self._engine_thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._engine_thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """With the checkpoint of its start, as a process that is started again has it."""
        self.folder, self.version = self.checkpoint, "default"
        self._model = load_model(self.checkpoint)
        self._images = load_image_config(self.checkpoint)
        generation = self.checkpoint / EOS_AND_END
        self._ends = tuple(json.loads(generation.read_text())["eos_token_id"]) if generation.is_file() else ()
        self._engine = EmbeddedEngine(self._model, max_batch=64)
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def kill(self) -> None:
        """Nobody listens any more, and every open connection breaks."""
        server, self._server = self._server, None
        if server is not None:
            server.dead = True
            server.shutdown()
            server.server_close()
            server.break_connections()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hangs.clear()
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._engine_thread.join()
        self._loop.close()

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: not self._updating)
            self._running += 1
            self.most = max(self.most, self._running)
            version, aborted = self.version, threading.Event()
            self._aborts.append(aborted)
        try:
            aborted.wait(self.slow_s)
            request = self._request(body)
            completion = asyncio.run_coroutine_threadsafe(self._sampled(request, aborted), self._loop).result()
        finally:
            with self._changed:
                self._running -= 1
                self._aborts.remove(aborted)
                self._changed.notify_all()
        if completion.finish_reason == "abort" and not completion.token_ids:
            reason = {"type": "abort", "message": "Abort before prefill"}
            return {"text": "", "meta_info": {"finish_reason": reason, "prompt_tokens": 0, "completion_tokens": 0}}
        return {"text": "", "output_ids": completion.token_ids, "meta_info": self._meta(completion, version)}

    async def _sampled(self, request: Request, aborted: threading.Event) -> Completion:
        tokens, logprobs = list[int](), list[float]()

        def on_token(token: int, logprob: float) -> None:
            tokens.append(token)
            logprobs.append(logprob)
            self.sampled += 1
            time.sleep(self.token_s)
            if token == self.breaks_off_at:
                aborted.wait(60)
            if aborted.is_set():
                whole.cancel()

        if not aborted.is_set():
            whole = self._engine.submit(request, on_token)
            await asyncio.wait({whole})
            if not whole.cancelled():
                return whole.result()
        return Completion(tokens, logprobs, "abort")

    def abort(self) -> None:
        """Break off what is being generated, as a push or somebody else may ask for."""
        for aborted in self._aborts:
            aborted.set()

    def load(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.pushes += 1
        with self._changed:
            self._changed.wait_for(lambda: not self._updating)
            self._updating = True
            if body.get("abort_all_requests"):
                self.abort()
            self._changed.wait_for(lambda: not self._running)
        try:
            return self._load(body)
        finally:
            with self._changed:
                self._updating = False
                self._changed.notify_all()

    def _load(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refuses_weights:
            return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}
        try:
            self._model = load_model(Path(body["model_path"]))
        except MoonflowError as error:
            return 400, {"success": False, "message": f"Failed to get weights iterator: {error}."}
        if self.damages_weights:
            with torch.no_grad():
                self._model.language_model.model.norm.weight[0] += 1e-3
        self._engine = EmbeddedEngine(self._model, max_batch=64)
        self.version = body.get("weight_version") or self.version
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def checksums(self) -> dict[str, Any]:
        sums = {name: digest(value) for name, value in as_sglang_holds(self._model)}
        sums["language_model.model.rotary_emb.scratch"] = "0" * 16  # a buffer that is in no checkpoint
        layout = {"role": "target", "tp_rank": 0, "tp_size": 1, "rank": 0, "size": 1}
        rank = {"checksums": sums, "per_gpu_checksum": "0" * 64, "parallelism_info": layout}
        return {"success": True, "message": "Success.", "ranks": [rank], "per_engine_checksum": "0" * 64}

    def _request(self, body: dict[str, Any]) -> Request:
        """The pads of an image are as many as the image asks for, and its pixels are cut into patches here."""
        sampling, pad = body["sampling_params"], self._model.config.media_placeholder_token_id
        pictures = [base64.b64decode(uri.partition(",")[2]) for uri in body.get("image_data", [])]
        encoded = [encode_image(picture, self._images) for picture in pictures]
        grids = [grid for _, grid in encoded]
        ids, images = list[int](), iter(grids)
        for token in body["input_ids"]:
            grid = next(images) if token == pad else None
            ids += [token] if grid is None else [pad] * (grid[1] * grid[2] // 4)
        ends = () if sampling["ignore_eos"] else self._ends
        return Request(
            ids, torch.cat([torch.from_numpy(patches) for patches, _ in encoded]) if encoded else None, grids,
            sampling["max_new_tokens"], sampling["temperature"], sampling["top_p"],
            (*sampling["stop_token_ids"], *ends), sampling["sampling_seed"],
        )  # fmt: skip

    def _meta(self, completion: Completion, version: str) -> dict[str, Any]:
        pairs = zip(completion.logprobs, completion.token_ids, strict=True)
        return {
            "finish_reason": {"type": completion.finish_reason},
            "weight_version": version,
            "output_token_logprobs": [[logprob, token, None] for logprob, token in pairs],
            "completion_tokens": len(completion.token_ids),
        }


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, replica: SGLangReplica) -> None:
        self.replica, self.dead = replica, False
        self._connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", replica.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was broken, by either side, is no error here."""

    def break_connections(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(Handler):
    server: _Server

    def do_GET(self) -> None:
        self._wait()
        pages = {"/health": b"", "/model_info": {"weight_version": self.server.replica.version, "model_path": "/m"}}
        if self.path in pages:
            self.reply(200, pages[self.path])
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        replica, body = self.server.replica, json.loads(self.body())
        self._wait()
        if self.path == "/update_weights_from_disk":
            self.reply(*replica.load(body))
        elif self.path == "/weights_checker":
            self.reply(200, replica.checksums())
        elif self.path == "/generate":
            self._generate(replica, body)
        else:
            self.reply(404, {"detail": "Not Found"})

    def _generate(self, replica: SGLangReplica, body: dict[str, Any]) -> None:
        fault = replica.faults.pop(0) if replica.faults else ""
        if fault == "kill":
            threading.Thread(target=replica.kill).start()
            return
        if fault == "500":
            self.reply(500, {"error": {"message": "scheduler hit an exception"}})
            return
        answer = replica.generate(body)
        if fault == "half":
            data = json.dumps(answer).encode()
            self.reply(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self.close_connection = True
            return
        self.reply(200, answer)
        if not self.server.dead:
            sampling = body["sampling_params"]
            replica.served.append(
                Served(tuple(body["input_ids"]), sampling["sampling_seed"], answer["meta_info"]["weight_version"])
            )

    def _wait(self) -> None:
        while self.server.replica.hangs.is_set():
            time.sleep(0.01)


def as_sglang_holds(model: KimiK25) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's tensors as SGLang's ``named_parameters`` has them (names from the sources of 0.5.23)."""
    state = model.state_dict()
    for name, value in state.items():
        prefix, _, last = name.rpartition(".")
        if name.endswith(".experts.gate_up_proj"):
            yield f"{prefix}.w13_weight", value
        elif name.endswith(".experts.down_proj"):
            yield f"{prefix}.w2_weight", value
        elif name.endswith(".gate_proj.weight"):
            up = state[name.replace("gate_proj", "up_proj")]
            yield name.replace("gate_proj", "gate_up_proj"), torch.cat([value, up])
        elif name.endswith(".q_a_proj.weight"):
            fused = torch.cat([value, state[name.replace("q_a_proj", "kv_a_proj_with_mqa")]])
            yield name.replace("q_a_proj", "fused_qkv_a_proj_with_mqa"), fused
        elif not name.endswith((".up_proj.weight", ".kv_a_proj_with_mqa.weight")):
            parts = {"wqkv": "attn.qkv_proj", "wo": "attn.proj"}
            names = [parts.get(part, part) for part in name.split(".")]
            joined = ".".join(names).replace("mm_projector.proj.0", "mm_projector.linear_1")
            yield joined.replace("mm_projector.proj.2", "mm_projector.linear_2"), value


def digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()[:16]
