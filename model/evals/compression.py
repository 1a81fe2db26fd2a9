"""Bits per byte of text that a model needs, and that compressors need (source: ours).

Every byte of a document is counted once.
"""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Sequence

import torch

from model.boundary.untrusted_text import well_formed
from model.codec.tokenizer import Tokenizer
from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.multimodal import KimiK25

ROWS = 64  # windows per forward


def windows(document: str, tokenizer: Tokenizer, tokens: int, stride: int) -> list[TokenizedSample]:
    """Cut a document into overlapping windows of at most ``tokens`` tokens, [BOS] included; no window is empty.

    The loss mask of the first window covers all its tokens, that of a later one its last ``stride`` tokens, which have
    at least ``tokens - stride - 1`` tokens of context. So every token of the document counts in exactly one window.

    Raises:
        ValueError: ``stride`` is not in 1 .. tokens - 1.
    """
    if not 0 < stride < tokens:
        raise ValueError(f"stride is {stride}: give 1 to {tokens - 1}")
    ids, found, counted = tokenizer.encode(document), [], 0
    while counted < len(ids):
        end = min(len(ids), counted + (stride if counted else tokens - 1))
        start = max(0, end - (tokens - 1))
        input_ids = torch.tensor([tokenizer.bos_id, *ids[start:end]])
        found.append(TokenizedSample(input_ids, torch.arange(len(input_ids)) > counted - start, None, []))
        counted = end
    return found


@torch.no_grad()
def bits_per_byte(model: KimiK25, tokenizer: Tokenizer, documents: Sequence[str], *, tokens: int, stride: int) -> float:
    """-log2 p of all tokens of all documents, per byte of UTF-8, in the windows of `windows`."""
    samples = [window for document in documents for window in windows(document, tokenizer, tokens, stride)]
    nats = 0.0
    for start in range(0, len(samples), ROWS):
        batch = pack(samples[start : start + ROWS], tokenizer.pad_id, tokens)
        nats -= float(model.logprobs(batch).double().sum())
    return nats / math.log(2) / sum(len(well_formed(document).encode()) for document in documents)


def xz(data: bytes) -> int:
    """Bytes of ``xz -9e``."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def compressors(documents: Sequence[bytes], training: Sequence[bytes]) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9e, under these keys:

    - ``gzip``, ``xz``: all documents as one stream, which favours the compressors most;
    - ``gzip_apart``, ``xz_apart``: each document by itself;
    - ``xz_after_training``: what the documents add to the stream of all training text, C(training + documents) -
      C(training).
    """
    whole, before = b"\n".join(documents), b"\n".join(training)
    size = {
        "gzip": len(gzip.compress(whole, 9)),
        "xz": xz(whole),
        "gzip_apart": sum(len(gzip.compress(document, 9)) for document in documents),
        "xz_apart": sum(xz(document) for document in documents),
        "xz_after_training": xz(before + b"\n" + whole) - xz(before),
    }
    return {name: 8 * length / sum(map(len, documents)) for name, length in size.items()}
