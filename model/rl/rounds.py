"""Rounds of episodes that are rolled out while earlier ones are learned from, up to a stated staleness (source: partial
rollouts and stored log-probs of the K2.5 paper, App. D; the bound and how it is kept: ours).

With a staleness of n, round t + n begins as soon as the weights with t updates are published, while round t is learned
from. So no episode is learned from whose first weights are more than n publishes older than those that it updates. What
is in flight when weights are published goes on with the new ones. With n = 0 a round begins when it is asked for and
nothing runs beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch

from model.rl.environment import Episode

Round = TypeVar("Round")
Result = TypeVar("Result")


class Rounds(Generic[Round]):
    """The rounds of one run. A context manager: when it is left, whatever the reason, nothing of it runs any more.

    Args:
        play: begins round t. It is called for one round after the other, when nothing is learned; what it returns then
            runs in the background.
        count: rounds of the run.
        ahead: how many rounds may be in flight beside the one that is learned from.
        device: on which is learned.
    """

    def __init__(
        self, play: Callable[[int], Coroutine[Any, Any, Round]], count: int, ahead: int, device: torch.device
    ) -> None:
        self._play, self._count, self._ahead = play, count, ahead
        self._tasks: dict[int, asyncio.Task[Round]] = {}
        # One thread for all that is learned: it starts when it is needed.
        self._thread = ThreadPoolExecutor(1, "learn", _begin_thread, (torch.get_num_threads(), device))

    async def played(self, t: int) -> Round:
        """What round ``t`` has become. The weights of round ``t`` have been published: the rounds that may begin with
        them do so now.

        Raises:
            Exception: whatever a round raised that was in flight, or was begun; the first of them.
        """
        for later in range(t, min(t + self._ahead + 1, self._count)):
            if later not in self._tasks:
                self._tasks[later] = asyncio.create_task(self._play(later))
        awaited = self._tasks[t]
        self._raise()
        while not awaited.done():  # a later round that fails ends this one, too
            running = [task for task in self._tasks.values() if not task.done()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            self._raise()
        return self._tasks.pop(t).result()

    async def beside(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in a thread while the rounds in flight go on; with none ahead it runs here, without one."""
        if not self._ahead:
            return work()
        call = contextvars.copy_context().run  # as for the caller: a tracking run is set per task
        result = await asyncio.get_running_loop().run_in_executor(self._thread, call, work)
        self._raise()
        return result

    def _raise(self) -> None:
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown()  # waits for what is being learned, which nothing can break off


def _begin_thread(threads: int, device: torch.device) -> None:
    """Let a thread compute as the caller's does: torch has both settings per thread."""
    torch.get_num_threads()  # a thread's first look takes the process's number, which an engine may change by then
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def staleness(episodes: Sequence[Episode], published: int) -> dict[str, float]:
    """How many publishes lie between the weights that sampled a token and those that learn from it.

    Args:
        episodes: that are learned from.
        published: how often weights had been published when they are.

    Returns:
        ``staleness/mean`` over all tokens of the policy, and ``staleness/max``. Episodes of an engine that does not
        count its weights are left out; nothing if there are no tokens.
    """
    ages = [
        published - version
        for episode in episodes
        if episode.weight_versions
        for version, ours in zip(episode.weight_versions, episode.policy_mask, strict=True)
        if ours
    ]
    return {"staleness/mean": float(np.mean(ages)), "staleness/max": float(max(ages))} if ages else {}
