"""Turns of an assistant, as tokens and as what a server makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from components.serve.turn_reader import Delta, TurnReader
from tests.tiny_folders import tiny_tokenizer


def spoken(*parts: str) -> list[int]:
    """Special tokens by their names, the rest as text."""
    tokenizer = tiny_tokenizer()
    return [
        token
        for part in parts
        for token in ([tokenizer.token_id(part)] if part[:1] in "<[" else tokenizer.encode(part))
    ]


def read_turn(
    ids: Sequence[int], thinking: bool = False, offers_tools: bool = True, calls: int = 0, stops: Sequence[str] = ()
) -> list[Delta]:
    reader = TurnReader(tiny_tokenizer(), thinking, offers_tools, calls, stops)
    return [delta for token in ids for delta in reader.feed(token)] + list(reader.finish())


def content(deltas: Sequence[Delta]) -> str:
    return "".join(delta.content for delta in deltas)
