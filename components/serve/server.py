"""An OpenAI-compatible endpoint over the embedded engine, for checkpoints that need no GPU server.

python -m components.serve.server --checkpoint FOLDER --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from components.serve.checkpoint import verify
from components.serve.openai_api import ChatRequest, error_body, to_chunks, to_request, to_response
from model.chat import AssistantTurn, parse_assistant
from model.config import load_config
from model.errors import MoonflowError
from model.image import ImageConfig
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Engine
from model.tokenizer import Tokenizer

MAX_BODY_BYTES = 64 * 2**20
logger = logging.getLogger("moonflow.serve")


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint, ready to answer; ``context`` in tokens."""

    engine: Engine
    tokenizer: Tokenizer
    image_config: ImageConfig
    context: int
    manifest_sha256: str


@dataclass
class Counters:
    """What /metrics shows, since the start."""

    requests: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    running: int = 0

    def text(self) -> str:
        """In Prometheus' text format."""
        by_status = [f'moonflow_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.requests.items())]
        rows = [
            ("requests_total", "counter", "Chat completion requests by HTTP status.", by_status),
            ("prompt_tokens_total", "counter", "Tokens read.", [f"moonflow_prompt_tokens_total {self.prompt_tokens}"]),
            ("completion_tokens_total", "counter", "Tokens generated.",
             [f"moonflow_completion_tokens_total {self.completion_tokens}"]),
            ("request_seconds_total", "counter", "Seconds spent on requests.",
             [f"moonflow_request_seconds_total {self.seconds:.6f}"]),
            ("requests_running", "gauge", "Requests in flight.", [f"moonflow_requests_running {self.running}"]),
        ]  # fmt: skip
        lines = [
            line
            for name, kind, about, values in rows
            for line in (f"# HELP moonflow_{name} {about}", f"# TYPE moonflow_{name} {kind}", *values)
        ]
        return "\n".join(lines) + "\n"


def load(checkpoint: Path) -> Loaded:
    """Verify and load a checkpoint folder; raises MoonflowError when it is not whole."""
    digest = verify(checkpoint)
    context = load_config(checkpoint / "config.json").text_config.max_position_embeddings
    return Loaded(EmbeddedEngine.load(checkpoint), Tokenizer.load(checkpoint), ImageConfig(), context, digest)


def create_app(checkpoint: Path, model_name: str = "moonflow") -> FastAPI:
    """The application. It answers /health with 503 until the checkpoint is verified and loaded, and with 500 if it
    cannot be."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def start() -> None:
            try:
                app.state.loaded = await asyncio.to_thread(load, checkpoint)
            except Exception as error:  # whatever it is, /health must tell it
                app.state.failure = str(error)
                logger.error("loading %s failed: %s", checkpoint, error)

        app.state.loaded = app.state.failure = None
        app.state.counters = Counters()
        loading = asyncio.create_task(start())
        yield
        await loading

    app = FastAPI(title="moonflow", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(StarletteHTTPException, _on_http)
    app.add_exception_handler(MoonflowError, _on_bad_input)
    app.add_exception_handler(Exception, _on_failure)

    @app.get("/health")
    async def health() -> JSONResponse:
        if app.state.failure:
            return JSONResponse({"status": "failed", "error": app.state.failure}, 500)
        if app.state.loaded is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ready", "manifest_sha256": app.state.loaded.manifest_sha256})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(app.state.counters.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        loaded = _ready(app)
        entry = {"id": model_name, "object": "model", "created": 0, "owned_by": "moonflow",
                 "max_model_len": loaded.context, "manifest_sha256": loaded.manifest_sha256}  # fmt: skip
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions")
    async def chat_completions(chat: ChatRequest) -> Response:
        if chat.model != model_name:
            raise HTTPException(404, f"the model {chat.model!r} does not exist; this server has {model_name!r}")
        return await _answer(_ready(app), chat, app.state.counters)

    @app.middleware("http")
    async def measure(request: Request, call_next):
        if request.url.path != "/v1/chat/completions":
            return await call_next(request)
        counters: Counters = app.state.counters
        counters.running += 1
        started, status = time.monotonic(), 500
        try:
            if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
                response: Response = JSONResponse(error_body(f"the body exceeds {MAX_BODY_BYTES} bytes"), 413)
            else:
                response = await call_next(request)
            status = response.status_code
            return response
        finally:
            counters.running -= 1
            counters.requests[status] += 1
            counters.seconds += time.monotonic() - started

    return app


async def _answer(loaded: Loaded, chat: ChatRequest, counters: Counters) -> Response:
    request = to_request(chat, loaded.tokenizer, loaded.image_config, loaded.context)
    completion = (await loaded.engine.generate([request]))[0]
    counters.prompt_tokens += len(request.input_ids)
    counters.completion_tokens += len(completion.token_ids)
    turn = parse_assistant(completion.token_ids, loaded.tokenizer)
    body = to_response(f"chatcmpl-{uuid.uuid4().hex}", chat.model, request, completion, turn)
    if not chat.stream:
        return JSONResponse(body)
    # The engine's protocol returns whole completions: a stream is for clients that want its form, not for latency.
    pieces = _pieces(completion, turn, loaded.tokenizer)
    events = to_chunks(body, pieces, bool(chat.stream_options.get("include_usage")))
    return StreamingResponse(events, media_type="text/event-stream")


def _pieces(completion: Completion, turn: AssistantTurn, tokenizer: Tokenizer) -> list[str]:
    """The content in the steps in which it was generated; a character of several tokens appears with its last one."""
    pieces, seen = [], 0
    for token_count in range(1, len(completion.token_ids) + 1):
        content = parse_assistant(completion.token_ids[:token_count], tokenizer).content
        if len(content) > seen and not content.endswith("\ufffd") and turn.content.startswith(content):
            pieces.append(content[seen:])
            seen = len(content)
    return [*pieces, turn.content[seen:]] if seen < len(turn.content) else pieces


def _ready(app: FastAPI) -> Loaded:
    if app.state.loaded is None:
        raise HTTPException(503, app.state.failure or "the model is still loading")
    return app.state.loaded


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return JSONResponse(error_body(f"{where}: {first['msg']}"), 400)


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = "model_not_found" if error.status_code == 404 and "model" in str(error.detail) else None
    return JSONResponse(error_body(str(error.detail), kind, code), error.status_code)


async def _on_bad_input(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(str(error)), 400)


async def _on_failure(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(f"the server failed: {type(error).__name__}", "server_error"), 500)


def serve_forever(checkpoint: Path, host: str, port: int, model_name: str = "moonflow") -> None:
    """Serve a checkpoint folder until interrupted.

    Raises:
        MoonflowError: the folder is not a whole checkpoint.
    """
    verify(checkpoint)
    load_config(checkpoint / "config.json")
    uvicorn.run(create_app(checkpoint, model_name), host=host, port=port, log_level="warning")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve a checkpoint over an OpenAI-compatible API.")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--model-name", default="moonflow", help="name that requests must give")
    given = parser.parse_args(arguments)
    try:
        serve_forever(given.checkpoint, given.host, given.port, given.model_name)
    except MoonflowError as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    main()
