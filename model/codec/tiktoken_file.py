"""The released tokenizer's two files: ``tiktoken.model`` with the ranks, and the names of the special tokens in its
tokenizer_config.json (source: the released tokenizer)."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.codec.tokenizer import MAX_BYTES, NAMED_SLOTS, Tokenizer

RANKS = "tiktoken.model"
_TOKEN_BYTES = 1024  # the merges of a token are found in quadratic time (ours)


def read_tiktoken(path: Path, where: str) -> Tokenizer:
    """The tokenizer whose ranks a file holds, one in a line: a token in base64, a space, its rank.

    Args:
        where: stands for the file in errors.

    Raises:
        MoonflowError: the file is too large or damaged, with the number of the line, or a token is too long.
    """
    if path.stat().st_size > MAX_BYTES:
        raise MoonflowError(f"{where} has more than {MAX_BYTES:,} bytes; take the one that belongs to the model")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise MoonflowError(
                f"{where}: line {number} is not a token in base64 and its rank; fetch the file again"
            ) from error
        if len(token) > _TOKEN_BYTES:
            raise MoonflowError(
                f"{where}: line {number} is a token of {len(token):,} bytes, more than {_TOKEN_BYTES:,}; fetch "
                "the file again"
            )
    try:
        return Tokenizer.of_ranks(ranks)
    except MoonflowError as error:
        raise MoonflowError(f"{where}: {error}") from error


def check_special_names(text: str, where: str, tokenizer: Tokenizer) -> None:
    """Compare the special tokens that a tokenizer_config.json names with ours. Slots that we do not use may have any
    name or none: the released model has a few there, such as "[EOT]", which no template writes.

    Raises:
        MoonflowError: the text is not such a file, or a token that we use has another id; names it.
    """
    try:
        named: dict[str, Any] = read_json(text)["added_tokens_decoder"]
        ids = {str(token["content"]): int(number) for number, token in named.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MoonflowError(f"{where} gives no usable added_tokens_decoder ({error}); fetch the file again") from error
    for name in NAMED_SLOTS.values():
        if ids.get(name) != tokenizer.token_id(name):
            raise MoonflowError(
                f"{where}: {name} is {ids.get(name, 'not there')}, but in Kimi K2.5's layout, with {tokenizer.ranks:,} "
                f"ranks, it is token {tokenizer.token_id(name)}; this tokenizer is of another model"
            )
