"""An OpenAI-compatible endpoint over the embedded engine, for checkpoints that need no GPU server.

python -m components.serve.server --checkpoint FOLDER --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from components.release.fetch import stamps, verify
from components.serve.answer import ReadyModel
from components.serve.chat import ChatCompletions
from components.serve.connection import OPTIONS
from components.serve.engine_process import EngineProcess
from components.serve.errors import ApiError
from components.serve.metrics import ServerMetrics
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_image_config
from model.codec.tokenizer import Tokenizer
from model.network.config import load_config

DRAIN_SECONDS = 30  # what a Deployment's grace period must exceed
logger = logging.getLogger("moonflow.serve")


class ChatServer:
    """The state that the routes share: what is loaded, or why it could not be."""

    def __init__(self, checkpoint: Path, model_name: str, sha256: str) -> None:
        self._checkpoint = checkpoint
        self._sha256 = sha256
        self._model_name = model_name
        self._loaded: ReadyModel | None = None
        self._load_failure = ""
        self.metrics = ServerMetrics()
        self.chat = ChatCompletions(model_name, self.ready, self.metrics)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._load())
        yield
        self.chat.close()
        loading.cancel()
        await asyncio.wait([loading])
        if self._loaded is not None:
            await self._loaded.engine.close()

    def ready(self) -> ReadyModel:
        """Raises ApiError while nothing is loaded, and when the engine has died."""
        if self._loaded is None or self._failure:
            raise ApiError(503, self._failure or "the model is still loading", None, "model_not_ready")
        return self._loaded

    @property
    def _failure(self) -> str:
        """Why the server must be started again to answer anything; "" if it answers or may still get ready."""
        return self._loaded.engine.failure if self._loaded is not None else self._load_failure

    async def health(self, _: Request) -> Response:
        if self._failure:
            return JSONResponse({"status": "failed", "error": self._failure}, 500)
        if self._loaded is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ready", "manifest_sha256": self._loaded.manifest_sha256})

    async def show_metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._model_name:
            told = f"the model {name!r} does not exist; this server has {self._model_name!r}"
            raise ApiError(404, told, "model", "model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        loaded = self.ready()
        return {"id": self._model_name, "object": "model", "created": 0, "owned_by": "moonflow",
                "max_model_len": loaded.context, "manifest_sha256": loaded.manifest_sha256}  # fmt: skip

    async def _load(self) -> None:
        try:
            before = stamps(self._checkpoint)
            digest = await asyncio.to_thread(verify, self._checkpoint, self._sha256)
            config = load_config(self._checkpoint / "config.json")
            images = load_image_config(self._checkpoint)
            tokenizer = await asyncio.to_thread(Tokenizer.load, self._checkpoint)
            engine = await EngineProcess.start(self._checkpoint, self.metrics.generated)
            if stamps(self._checkpoint) != before:
                await engine.close()
                raise MoonflowError(f"{self._checkpoint} was changed while it was loaded: fetch the checkpoint again")
        except Exception as error:  # whatever it is, /health must report it
            self._load_failure = str(error) or type(error).__name__
            logger.error("loading %s failed: %s", self._checkpoint, self._load_failure)
            return
        self.metrics.watch(lambda: engine.waiting, lambda: engine.running)
        context = config.text_config.max_position_embeddings
        self._loaded = ReadyModel(engine, tokenizer, images, context, digest)


def create_app(checkpoint: Path, model_name: str = "moonflow", sha256: str = "") -> Starlette:
    """The application. It answers /health with 503 until the checkpoint is verified and loaded, and with 500 if it
    cannot be or the engine has died. ``sha256`` is the manifest's digest as promoted, see ``verify``."""
    server = ChatServer(checkpoint, model_name, sha256)
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/metrics", server.show_metrics),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.model),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        lifespan=server.lifespan,
        exception_handlers={ApiError: _on_api_error, HTTPException: _on_http, Exception: _on_failure},
    )


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    return JSONResponse(told.body, told.status, error.headers)


async def _on_failure(_: Request, error: Exception) -> Response:
    told = ApiError(500, f"the server failed: {type(error).__name__}")
    return JSONResponse(told.body, told.status)


def serve_forever(checkpoint: Path, host: str, port: int, model_name: str = "moonflow", sha256: str = "") -> None:
    """Serve a checkpoint folder until interrupted; then take no more requests, and finish those under way within
    DRAIN_SECONDS. ``sha256`` is the manifest's digest as promoted, see ``verify``.

    Raises:
        MoonflowError: the folder is not a whole checkpoint, or not the promoted one.
    """
    verify(checkpoint, sha256)
    load_config(checkpoint / "config.json")
    app = create_app(checkpoint, model_name, sha256)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=DRAIN_SECONDS, **OPTIONS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve a checkpoint over an OpenAI-compatible API.")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with config.json and weights")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--model-name", default="moonflow", help="name that requests must give")
    parser.add_argument("--sha256", default="", help="digest that the checkpoint's manifest must have, as promoted")
    given = parser.parse_args(arguments)
    try:
        serve_forever(given.checkpoint, given.host, given.port, given.model_name, given.sha256)
    except MoonflowError as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    main()
