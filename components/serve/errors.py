"""Errors in OpenAI's shape (source: the API reference, error objects)."""

from __future__ import annotations

from typing import Any

from components.serve.limits import MAX_ERROR_CHARACTERS


class ApiError(Exception):
    """What a caller is told instead of an answer.

    Attributes:
        status: the HTTP status.
        param: the field of the request that is wrong, if it is one.
        code: OpenAI's short name of the error, if it has one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        if len(message) > MAX_ERROR_CHARACTERS:  # it quotes what the caller sent
            message = message[: MAX_ERROR_CHARACTERS - 1] + "…"
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)
