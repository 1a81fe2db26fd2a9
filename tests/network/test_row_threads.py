"""A pool divides rows among real threads."""

from __future__ import annotations

import threading

import pytest
import torch

from model.network.row_threads import RowThreads


@pytest.mark.parametrize(("rows", "bounds"), [(1, [(0, 1)]), (8, [(0, 4), (4, 8)]), (13, [(0, 4), (4, 8), (8, 13)])])
def test_parts_are_whole_granules_in_order(rows: int, bounds: list[tuple[int, int]]) -> None:
    pool = RowThreads(3)
    assert pool.over(rows, lambda start, end: (start, end), granule=4) == bounds
    pool.close()


def test_an_error_of_one_part_waits_for_the_others() -> None:
    pool, first, ended = RowThreads(2), threading.Event(), []

    def work(start: int, end: int) -> None:
        if start == 0:
            first.set()
            raise ValueError("of the first part")
        first.wait(timeout=5)
        ended.append(end)

    with pytest.raises(ValueError, match="first part"):
        pool.over(2, work)
    assert ended == [2]
    pool.close()


@pytest.mark.parametrize("gradients", [True, False])
def test_gradients_are_on_in_every_thread_as_they_are_for_the_caller(gradients: bool) -> None:
    pool = RowThreads(2)
    with torch.set_grad_enabled(gradients):
        assert pool.map(lambda _: torch.is_grad_enabled(), [0, 1]) == [gradients] * 2
    with torch.inference_mode(not gradients):
        assert pool.map(lambda _: torch.is_inference_mode_enabled(), [0, 1]) == [not gradients] * 2
    pool.close()


def test_more_parts_than_threads_are_refused() -> None:
    pool = RowThreads(2)
    with pytest.raises(ValueError, match="3 parts for 2 threads"):
        pool.map(lambda part: part, [0, 1, 2])
    pool.close()
