"""Small hosts in the place of remote engines: one speaks SGLang's native API, one OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = tuple[int, Any]  # HTTP status, body in JSON's terms


class Host(ThreadingHTTPServer):
    """A host on a free loopback port, up as long as it is used as a context manager.

    Attributes:
        seen: path and body of every POST.
        key: the bearer token without which everything is answered 401; "": none.
        script: answers to the next POSTs, before the host's own.
        pages: path -> what a GET is answered; 404 to any other.
    """

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, Any]] = []
        self.key = ""
        self.script: list[Answer] = []
        self.pages: dict[str, Answer] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: Any) -> Answer:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.admitted():
            self.send(*self.server.pages.get(self.path, (404, {"detail": "Not Found"})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.admitted():
            self.server.seen.append((self.path, body))
            self.send(*(self.server.script.pop(0) if self.server.script else self.server.answer(self.path, body)))

    def admitted(self) -> bool:
        given = self.headers.get("authorization", "")
        if welcome := self.server.key in ("", given.removeprefix("Bearer ")):
            return welcome
        self.send(401, {"error": f"Unauthorized {given}"})
        return False

    def send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class SGLangHost(Host):
    """SGLang's /generate, /update_weights_from_disk, /health and /get_model_info (as recorded from 0.5.23).

    Attributes:
        complete: prompt ids -> sampled ids and the type of the finish reason; by default it echoes the prompt's last
            tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.complete: Callable[[list[int], dict[str, Any]], tuple[list[int], str]] = echo
        info = {"model_path": "/models/k25", "tokenizer_path": "/models/k25", "is_generation": True}
        self.pages = {"/health": (200, {}), "/get_model_info": (200, info)}

    def answer(self, path: str, body: Any) -> Answer:
        if path != "/generate":
            return 200, {"success": True, "message": "Succeeded to update model weights."}
        ids, reason = self.complete(body["input_ids"], body["sampling_params"])
        entries = [[-0.5 * n, token, None] for n, token in enumerate(ids)]
        meta = {"finish_reason": {"type": reason, "length": len(ids)}, "output_token_logprobs": entries}
        return 200, {"text": "", "output_ids": ids, "meta_info": meta}


def echo(ids: list[int], sampling: dict[str, Any]) -> tuple[list[int], str]:
    return ids[-sampling["max_new_tokens"] :], "length"


class ChatHost(Host):
    """OpenAI's /v1/models and /v1/chat/completions.

    Attributes:
        reply: request body -> the assistant's message and the finish reason; by default "yes".
    """

    def __init__(self) -> None:
        super().__init__()
        self.reply: Callable[[dict[str, Any]], tuple[dict[str, Any], str]] = lambda body: ({"content": "yes"}, "stop")
        self.pages = {"/v1/models": (200, {"object": "list", "data": [{"id": "k25", "object": "model"}]})}

    def answer(self, path: str, body: Any) -> Answer:
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        return 200, completion(*self.reply(body))


def completion(message: dict[str, Any], reason: str) -> dict[str, Any]:
    """A chat completion of one choice."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
