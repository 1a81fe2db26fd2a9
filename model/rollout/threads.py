"""Rows of a batch shared out over threads, each with one intra-op thread of torch (source: ours).

Where a row's numbers do not hang on what is computed with it, they do not hang on the number of threads either.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class RowThreads:
    """``count`` threads, the caller's among them; torch's kernels and ours run without the interpreter's lock."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._others = ThreadPoolExecutor(max(count - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        self._others.shutdown()

    def over(self, rows: int, work: Callable[[int, int], T], granule: int = 1) -> list[T]:
        """``work(start, end)`` of each share of ``rows`` rows, in order; all but the last are whole granules."""
        granules = -(-rows // granule)
        shares = min(self.count, granules)
        bounds = [min(share * granules // shares * granule, rows) for share in range(shares + 1)]
        later = [
            self._others.submit(_without_gradients, work, start, end)
            for start, end in zip(bounds[1:], bounds[2:], strict=False)
        ]
        try:
            first = work(0, bounds[1])
        finally:
            # An error leaves no thread behind that still writes.
            done = [share.exception() for share in later]
        for error in done:
            if error is not None:
                raise error
        return [first, *(share.result() for share in later)]


@torch.inference_mode()
def _without_gradients(work: Callable[[int, int], T], start: int, end: int) -> T:
    return work(start, end)
