"""One SGLang of several, and what is known of it (source: ours)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from model.boundary.errors import MoonflowError
from model.rollout.protocol import Completion
from model.rollout.served_weights import Digests, Weights
from model.rollout.sglang import SGLangEngine

log = logging.getLogger(__name__)

MISSES = 2  # failed health checks in a row after which a replica counts as gone (ours)


class Replica:
    """One server. It answers requests while it is healthy and holds the weights that it is asked to hold.

    Attributes:
        calls: requests under way; cancelled when it is dropped.
        holds: the weights that it has been seen to hold; None before that and after it was dropped.
        fault: why it was dropped, in one line; "" if it was not.
        told: the digests that it told after its last load.
        check: the look at it that is under way, or the last one.
    """

    def __init__(self, url: str, engine: SGLangEngine) -> None:
        self.url, self.engine = url, engine
        self.calls: set[asyncio.Task[Completion]] = set()
        self.holds: Weights | None = None
        self.fault = ""
        self.told: Digests = {}
        self.check: asyncio.Task[None] | None = None
        self._misses = 0

    async def ask(self, body: Mapping[str, Any]) -> Completion | None:
        """The completion; None if the replica was dropped meanwhile, whatever it would have answered.

        Raises:
            MoonflowError: as ``SGLangEngine.complete``.
        """
        call = asyncio.create_task(self.engine.complete(body))
        self.calls.add(call)
        try:
            await asyncio.wait({call})
        finally:
            self.calls.discard(call)
            call.cancel()  # for where this task is cancelled; it does nothing to a call that has ended
        return None if call.cancelled() else call.result()

    def drop(self, fault: str) -> None:
        """Ask it nothing more until it has been loaded again; the answers to its requests are ignored."""
        if self.fault != fault:
            log.warning("replica %s is dropped: %s", self.url, fault)
        self.fault, self.holds, self._misses = fault, None, 0
        for call in self.calls:
            call.cancel()

    async def see_to_it(self, health_s: float) -> None:
        """Drop it if it has failed MISSES health checks in a row, this one included."""
        if await self.engine.healthy(health_s):
            self._misses = 0
            return
        self._misses += 1
        if self._misses >= MISSES and not self.fault:
            self.drop(f"/health did not answer 200 within {health_s:g} s, {self._misses} times in a row")

    async def load(
        self, weights: Weights, health_s: float, pushes: bool, breaks_off: bool = False
    ) -> MoonflowError | None:
        """Let it load ``weights``, and ask which it holds (``told``); returns what went wrong, and it is dropped.

        It is not asked before ``believe``.

        Args:
            pushes: False waits for another process to push them.
            breaks_off: whether it breaks off what it is generating, or ends it first.
        """
        try:
            if not await self.engine.healthy(health_s):
                raise MoonflowError(f"/health did not answer 200 within {health_s:g} s")
            if pushes and weights.folder is not None:
                await self.engine.update_weights(weights.folder, weights.version, breaks_off)
            named = await self.engine.weight_version()
            if named != weights.version:
                raise MoonflowError(f"it names its weights {named[:12] or 'not at all'}, not {weights.version[:12]}")
            self.told = await self.engine.digests() if weights.digests else {}
        except MoonflowError as error:
            self.drop(str(error))
            return error
        return None

    def believe(self, weights: Weights) -> None:
        """Ask it from now on, if what it told of ``weights`` is right; else drop it."""
        if fault := weights.fault(self.told):
            self.drop(fault)
            return
        if self.fault:
            log.warning("replica %s is back", self.url)
        self.fault, self.holds, self._misses = "", weights, 0
