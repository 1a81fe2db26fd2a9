"""Messages with media, as OpenAI's clients send them."""

from __future__ import annotations

import base64
from typing import Any


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def showing(*media: str | bytes, kind: str = "image_url", mime: str = "image/png") -> list[dict[str, Any]]:
    """One message with these media, by their addresses or as files of the type ``mime``."""
    urls = [medium if isinstance(medium, str) else data_url(medium, mime) for medium in media]
    return [{"role": "user", "content": [{"type": kind, kind: {"url": url}} for url in urls]}]
