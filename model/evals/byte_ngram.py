"""A byte n-gram model with interpolated Kneser-Ney smoothing: how well counting alone predicts a text
(source: Kneser and Ney 1995; Chen and Goodman 1999, section 2.7, one discount per order).

Counts are exact, without hashing: an n-gram of at most eight bytes is one 64-bit number, with the oldest byte in the
highest place.

Shapes: N predicted bytes, U different n-grams, C different contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST = 8  # bytes of an n-gram, the predicted one included
Grams = NDArray[np.uint64]


@dataclass(frozen=True)
class _Order:
    """The counts for one n.

    Attributes:
        grams_U, counts_U: sorted n-grams and how often each occurs.
        contexts_C: sorted contexts, which are n-grams without their last byte.
        totals_C, types_C: how often a context occurs, and how many different bytes follow it.
        discount: what Kneser-Ney takes off every count.
    """

    grams_U: Grams
    counts_U: NDArray[np.int64]
    contexts_C: Grams
    totals_C: NDArray[np.int64]
    types_C: NDArray[np.int64]
    discount: float


class ByteNgram:
    """A model of the training documents. Each is preceded by zero bytes, so that no context spans two documents.

    Args:
        documents: the training text.
        order: bytes of an n-gram, 1 to 8.

    Raises:
        ValueError: ``order`` is out of range.
    """

    def __init__(self, documents: Sequence[bytes], order: int) -> None:
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order is {order}: give 1 to {LONGEST}")
        grams, counts = np.unique(_grams(documents, order), return_counts=True)
        orders = []
        for length in range(order, 0, -1):
            orders.append(_order(grams, counts))
            # Below the highest order, the count of an n-gram is the number of different bytes that precede it.
            grams, counts = np.unique(grams & _mask(length - 1), return_counts=True)
        self.orders = orders[::-1]

    def probabilities(self, documents: Sequence[bytes]) -> NDArray[np.float64]:
        """p(byte | the order - 1 bytes before it) for every byte of the documents, [N]."""
        grams_N = _grams(documents, len(self.orders))
        p_N = np.full(len(grams_N), 1 / 256)
        for length, order in enumerate(self.orders, start=1):
            gram_N = grams_N & _mask(length)
            counts_N = _looked_up(gram_N, order.grams_U, order.counts_U)
            totals_N = _looked_up(gram_N >> np.uint64(8), order.contexts_C, order.totals_C)
            types_N = _looked_up(gram_N >> np.uint64(8), order.contexts_C, order.types_C)
            kept_N = np.maximum(counts_N - order.discount, 0) + order.discount * types_N * p_N
            p_N = np.where(totals_N > 0, kept_N / np.maximum(totals_N, 1), p_N)
        return p_N

    def bits_per_byte(self, documents: Sequence[bytes]) -> float:
        """Mean of -log2 p over all bytes of the documents."""
        return float(-np.log2(self.probabilities(documents)).mean())


def _mask(length: int) -> np.uint64:
    return np.uint64((1 << 8 * length) - 1)


def _grams(documents: Sequence[bytes], length: int) -> Grams:
    """The n-gram that ends in each byte of the documents, in their order [N]."""
    parts = []
    for document in documents:
        padded = np.frombuffer(bytes(length - 1) + document, np.uint8).astype(np.uint64)
        gram = np.zeros(len(document), np.uint64)
        for offset in range(length):
            gram = (gram << np.uint64(8)) | padded[offset : offset + len(document)]
        parts.append(gram)
    return np.concatenate(parts)


def _order(grams_U: Grams, counts_U: NDArray[np.int64]) -> _Order:
    contexts_C, first_C = np.unique(grams_U >> np.uint64(8), return_index=True)
    types_C = np.diff(np.append(first_C, len(grams_U)))
    once, twice = int((counts_U == 1).sum()), int((counts_U == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(grams_U, counts_U, contexts_C, np.add.reduceat(counts_U, first_C), types_C, min(discount, 0.99))


def _looked_up(keys_N: Grams, sorted_U: Grams, values_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value of each key [N]; 0 for a key that is not among the sorted ones."""
    at_N = np.minimum(np.searchsorted(sorted_U, keys_N), len(sorted_U) - 1)
    found_N: NDArray[np.int64] = np.where(sorted_U[at_N] == keys_N, values_U[at_N], 0)
    return found_N
