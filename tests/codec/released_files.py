"""A tokenizer's files as the released checkpoint has them, and how tiktoken reads a text with them, in plain Python.

``regex`` has the sets of characters that the released pattern needs; the pattern is written out here as the released
code has it, and not as ours composes it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import regex

from tests.corpus import corpus

PATTERN = regex.compile(
    r"""[\p{Han}]+"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""  # noqa: E501
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""  # noqa: E501
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    regex.V1,
)
NAMED = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>",
    7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>", 11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>", 13: "<|tool_call_begin|>", 14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>", 17: "<|im_middle|>", 18: "<|media_begin|>", 19: "<|media_content|>", 20: "<|media_end|>",
    21: "<|media_pad|>", 22: "<think>", 23: "</think>", 254: "[UNK]", 255: "[PAD]",
}  # fmt: skip
MORE_TEXT = [
    "人工知能と知识 12345 of 2026",
    "naïve Ünïcode ǅ e\u0301t\u00e9 don't WE'LL",
    "  \n\n\t  x\r\n",
    "…!!\n\n== 1,000.25 $",
]


def merged(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """As tiktoken does it: the neighbours whose union has the lowest rank are joined, the leftmost first."""
    if word in ranks:
        return [word]
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        ranked = [(ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)]
        rank, place = min(ranked)
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def reference_encode(text: str, ranks: Mapping[bytes, int]) -> list[int]:
    """The ids of a text without special tokens."""
    words = [match[0] for match in PATTERN.finditer(text)]
    assert "".join(words) == text
    return [ranks[token] for word in words for token in merged(word.encode(), ranks)]


def _joined(word: tuple[bytes, ...], token: bytes) -> tuple[bytes, ...]:
    """A word in which neighbours that make up the token are joined, from left to right."""
    if token not in b"".join(word):
        return word
    parts: list[bytes] = []
    for part in word:
        if parts and len(parts[-1]) < len(token) and parts[-1] + part == token:
            parts[-1] = token
        else:
            parts.append(part)
    return tuple(parts)


@cache
def released_ranks(count: int = 768) -> dict[bytes, int]:
    """Learnt byte-pair by byte-pair from the tests' texts, cut into the released words."""
    words: dict[tuple[bytes, ...], int] = {}
    for text in (*corpus()[::6], *MORE_TEXT * 8):
        for match in PATTERN.finditer(text):
            word = tuple(bytes([byte]) for byte in match[0].encode())
            words[word] = words.get(word, 0) + 1
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < count:
        pairs: dict[bytes, int] = {}
        for word, number in words.items():
            for left, right in zip(word, word[1:], strict=False):
                pairs[left + right] = pairs.get(left + right, 0) + number
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best] = len(ranks)
        words = {_joined(word, best): number for word, number in words.items()}
    return ranks


def write_tokenizer_files(folder: Path, ranks: Mapping[bytes, int] | None = None) -> None:
    """tiktoken.model and tokenizer_config.json."""
    ranks = ranks or released_ranks()
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_text("".join(lines))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    named = {
        str(len(ranks) + slot): {"content": name, "special": "tool_call" not in name and "think" not in name, **flags}
        for slot, name in NAMED.items()
    }
    raw = {"added_tokens_decoder": named, "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    raw |= {"bos_token": "[BOS]", "eos_token": "[EOS]", "tokenizer_class": "TikTokenTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw, indent=2))
