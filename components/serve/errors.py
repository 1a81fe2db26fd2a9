"""Errors in OpenAI's shape (source: the API reference, error objects)."""

from __future__ import annotations

from typing import Any

from components.serve.limits import MAX_ERROR_CHARACTERS


class ApiError(Exception):
    """The error that a caller gets instead of an answer.

    Attributes:
        status: the HTTP status.
        param: the field of the request that is wrong, if it is one.
        code: OpenAI's short name of the error, if it has one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        # Both quote what the caller sent.
        self.status, self.message, self.code = status, _cut(message), code
        self.param = None if param is None else _cut(param)

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """An overloaded server may be asked again in a second."""
        return {"retry-after": "1"} if self.status == 503 else {}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[: MAX_ERROR_CHARACTERS - 1] + "…"


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def overloaded(told: str) -> ApiError:
    return ApiError(503, f"{told}; try later", None, "overloaded")
