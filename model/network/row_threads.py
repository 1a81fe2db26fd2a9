"""A pool of threads that divide the rows of a batch (source: ours).

torch's kernels and ours run without the interpreter's lock, so threads that each compute some rows use several cores.
Where a row's numbers do not depend on the rows computed with it, they do not depend on the number of threads either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


class RowThreads:
    """``count`` threads, the caller's among them; the others start when they are needed, with one intra-op thread of
    torch each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._others = ThreadPoolExecutor(max(count - 1, 1), "rows", torch.set_num_threads, (1,))

    def close(self) -> None:
        """End the threads."""
        self._others.shutdown()

    def map(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Run ``work(part)`` for up to ``count`` parts at the same time; returns the results in the order of the parts.

        Gradients are on or off in every thread as they are for the caller. If parts raise, the error of the first of
        them is raised, after all parts have ended.

        Raises:
            ValueError: there are more parts than threads.
        """
        if len(parts) > self.count:
            raise ValueError(f"{len(parts)} parts for {self.count} threads")
        inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def as_caller(part: Part) -> Result:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                return work(part)

        others = [self._others.submit(as_caller, part) for part in parts[1:]]
        try:
            first = work(parts[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def over(self, rows: int, work: Callable[[int, int], Result], granule: int = 1) -> list[Result]:
        """Run ``work(start, end)`` on one range of rows per thread; returns the results in the order of the ranges.

        Every range but the last is a whole number of granules.
        """
        granules = -(-rows // granule)
        parts = min(self.count, granules)
        bounds = [min(part * granules // parts * granule, rows) for part in range(parts + 1)]
        return self.map(lambda part: work(*part), list(zip(bounds, bounds[1:], strict=False)))
