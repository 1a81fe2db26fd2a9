"""Several SGLang replicas as one engine (source: ours).

A request goes to the replica with the fewest requests under way. A replica whose calls fail although they were
repeated, or whose health checks fail, is dropped: its requests go to the others, and what it may still answer is
ignored. While there are requests, dropped replicas are looked after: one that is healthy again is given the weights of
now, and only then asked again. An answer from other weights is ignored too, and its replica is loaded again.

New weights may come while requests are under way, if the pool is told so. The replicas then break them off, and what is
missing is sampled from the new weights (``model.rollout.partial``). What a replica gives up by itself is asked anew.

What is proven of a replica before it is asked: it names the version of the weights, the SHA-256 of the pushed files;
each parameter has the same digest on all replicas; and where SGLang's digests can be compared
(``model.rollout.served_weights``), each is that of the checkpoint's tensor. Every answer names its version again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from model.boundary.errors import MoonflowError, Transient
from model.codec.image import ImageConfig
from model.rollout.addresses import replica_urls
from model.rollout.http_calls import BACKOFF_S, TIMEOUT_S, Refused
from model.rollout.partial import Partial
from model.rollout.protocol import Completion, Request
from model.rollout.replica import Replica
from model.rollout.served_weights import Weights, checkpoint_digests, files_digest
from model.rollout.sglang import SGLangEngine

log = logging.getLogger(__name__)

# All values: ours.
ATTEMPTS = 3  # of a call, with back-off, before its replica is suspected
AT_ONCE = 64  # requests under way at one replica: an engine's batch, and far fewer than the connections of a process
TRIES = 3  # failures of a request at healthy replicas after which it is given up
DEATHS = 5  # replicas that are dropped while a request is with them, after which it is taken for the cause
PATIENCE_S = 600.0
PROBE_S = 10.0
HEALTH_S = 30.0  # SGLang itself waits 20 s for a token before it says that it is not healthy


class SGLangPool:
    """A ``model.rollout.protocol.RolloutEngine`` on several SGLangs. ``update_weights`` comes before ``generate``.

    A request has the same seed wherever and as often as it is asked; what is missing of one that new weights broke off
    has another one, which follows from that and from the number of tokens so far. What ``SGLangEngine`` says holds for
    every replica.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        media_pad_id: int,
        image_config: ImageConfig | None = None,
        *,
        pushes: bool = True,
        breaks_off: bool = False,
        at_once: int = AT_ONCE,
        attempts: int = ATTEMPTS,
        backoff_s: float = BACKOFF_S,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        probe_s: float = PROBE_S,
        health_s: float = HEALTH_S,
    ) -> None:
        """
        Args:
            addresses: from ``model.rollout.addresses.parse_addresses``.
            media_pad_id, image_config, attempts, backoff_s, timeout_s: as for ``SGLangEngine``.
            pushes: False if another process pushes the weights, see ``follow``.
            breaks_off: whether ``update_weights`` breaks off what is being generated; False lets each replica end it
                before it loads them.
            at_once: most requests under way at one replica.
            patience_s: seconds without any usable replica after which that is an error.
            probe_s: seconds between two looks at all replicas while requests are under way.
            health_s: seconds that a replica may take to say that it is healthy.
        """
        self._addresses, self._at_once = addresses, at_once
        self._pushes, self._breaks_off = pushes, breaks_off
        self._client = (media_pad_id, image_config or ImageConfig(), attempts, backoff_s, timeout_s)
        self._patience_s, self._probe_s, self._health_s = patience_s, probe_s, health_s
        self._replicas: dict[str, Replica] = {}
        self._writer = self._engine(addresses[0])  # of requests, which are the same for every replica
        self._weights: Weights | None = None
        self._version = 0  # how often it was given weights
        self._loading = False  # the replicas are being given them
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._callers = 0
        self._watch: asyncio.Task[None] | None = None
        self._looked = 0.0  # when, on the event loop's clock

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of ``requests``, in their order.

        Raises:
            Transient: for ``patience_s`` seconds there was no usable replica.
            MoonflowError: a request is refused, or fails at healthy replicas, or has a video.
        """
        if self._weights is None:
            raise RuntimeError("update_weights or follow comes first")
        bodies = [self._writer.body(request) for request in requests]
        async with self._watched():
            calls = [asyncio.create_task(self._complete(Partial(body, self._client[0]))) for body in bodies]
            try:
                return list(await asyncio.gather(*calls))
            finally:
                for call in calls:
                    call.cancel()

    async def update_weights(self, checkpoint: Path) -> None:
        """Let every replica load a checkpoint folder, which all their hosts must have under the same path.

        Replicas that fail are dropped. The folder must stay until the next call: a replica that comes back reads it.

        Raises:
            Transient: no replica could be reached for ``patience_s`` seconds.
            MoonflowError: every replica refuses; or the folder is damaged.
        """
        digests = await asyncio.to_thread(checkpoint_digests, checkpoint)
        version = await asyncio.to_thread(files_digest, checkpoint)
        known = self._weights.comparable if self._weights is not None else frozenset()
        await self._load_all(Weights(checkpoint, version, digests, known & digests.keys()))

    async def follow(self, version: str) -> None:
        """Ask only replicas that hold ``version``, which another process pushes (``weight_version`` there).

        Raises: as ``update_weights``.
        """
        await self._load_all(Weights(None, version, {}))

    @property
    def weight_version(self) -> str:
        """The version of the weights that are asked for, "" before the first."""
        return self._weights.version if self._weights is not None else ""

    @property
    def usable(self) -> list[str]:
        """The URLs of the replicas that are asked now."""
        return [replica.url for replica in self._replicas.values() if self._is_usable(replica)]

    @property
    def proven(self) -> tuple[int, int]:
        """How many of the parameters that hold the checkpoint's tensors were told equal by digest, and of how many."""
        return (len(self._weights.comparable), len(self._weights.digests)) if self._weights is not None else (0, 0)

    async def _load_all(self, weights: Weights) -> None:
        self._weights, self._loading = weights, True
        self._version += 1
        try:
            checks = [r.check for r in self._replicas.values() if r.check is not None and not r.check.done()]
            for check in checks:  # it may be loading the weights before these
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
            await self._load_until_usable(weights)
        finally:
            self._loading = False

    async def _load_until_usable(self, weights: Weights) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience_s
        while True:
            await self._find_replicas()
            replicas = list(self._replicas.values())
            loads = [replica.load(weights, self._health_s, self._pushes, self._breaks_off) for replica in replicas]
            faults = await asyncio.gather(*loads)
            self._believe([replica for replica, fault in zip(replicas, faults, strict=True) if fault is None], weights)
            if self.usable:
                break
            if all(isinstance(fault, Refused) for fault in faults):  # to wait would not help
                raise MoonflowError(f"no replica takes the weights: {faults[0]}")
            if clock() >= deadline:
                raise self._silence()
            await asyncio.sleep(self._probe_s)
        self._looked = clock()
        equal, of = self.proven
        log.info(
            "weights %s: on %d of %d replicas; by digest %d of %d parameters are the checkpoint's, the others the same",
            weights.version[:12], len(self.usable), len(self._replicas), equal, of,
        )  # fmt: skip

    async def _complete(self, partial: Partial) -> Completion:
        tries = deaths = 0
        waited, clock = 0.0, asyncio.get_running_loop().time
        while True:
            begun = clock()
            replica = await self._least_loaded()
            waited += clock() - begun
            weights, version, failure = replica.holds, self._version, None
            try:
                completion = await replica.ask(partial.body)
            except Refused:
                raise
            except MoonflowError as error:
                completion, failure = None, error
                if replica.holds is not None and not await replica.engine.healthy(self._health_s):
                    replica.drop(str(error))
            finally:
                self._let_in(1)
            if completion is not None and completion.finish_reason == "abort" and version == self._version:
                completion, failure = None, MoonflowError(f"{replica.url} gave the request up")
            if completion is not None and weights is not None and completion.weights != weights.version:
                if version == self._version:
                    replica.drop(f"it answered from weights {completion.weights[:12] or 'that it does not name'}")
                completion = None
            if completion is not None and (whole := partial.add(completion, version)) is not None:
                return replace(whole, waited_s=waited)
            if version != self._version:  # new weights came, for which replicas break requests off
                continue
            gone = replica.holds is not weights
            tries, deaths = tries + (not gone), deaths + gone
            if tries >= TRIES:
                raise failure or MoonflowError(f"the request failed {tries} times")
            if deaths >= DEATHS:
                raise MoonflowError(f"{deaths} replicas were dropped while this request was with them")

    async def _least_loaded(self) -> Replica:
        """A usable replica with room for a request; the caller asks it before anything else runs."""
        while True:
            free = [r for r in self._replicas.values() if self._is_usable(r) and len(r.calls) < self._at_once]
            if free:
                return min(free, key=lambda replica: len(replica.calls))
            self._keep_watching()
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._let_in(1)  # it was this request's turn: the next one takes it
                raise

    def _let_in(self, count: int) -> None:
        """Let as many waiting requests look for a replica again."""
        while self._waiting and count:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1

    def _is_usable(self, replica: Replica) -> bool:
        return replica.holds is not None and replica.holds is self._weights

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """While anybody is in the body, the replicas are looked after."""
        self._callers += 1
        self._keep_watching()
        try:
            yield
        finally:
            self._callers -= 1
            if not self._callers:
                checks = [r.check for r in self._replicas.values() if r.check is not None and not r.check.done()]
                for task in (self._watch, *checks):
                    if task is not None:
                        task.cancel()

    def _keep_watching(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        """Look at all replicas from time to time; fail the waiting requests if none has been usable for too long."""
        clock = asyncio.get_running_loop().time
        used = clock()
        try:
            while True:
                await asyncio.sleep(max(0.0, min(self._probe_s, self._looked + self._probe_s - clock())))
                self._looked = clock()
                await self._find_replicas()
                for replica in self._replicas.values():
                    if not self._loading and (replica.check is None or replica.check.done()):
                        replica.check = asyncio.create_task(self._check(replica))
                if self.usable or self._loading:
                    used = clock()
                elif clock() - used > self._patience_s:
                    raise self._silence()
        except Exception as error:
            for turn in self._waiting:
                if not turn.done():
                    turn.set_exception(error)
            self._waiting.clear()

    async def _check(self, replica: Replica) -> None:
        weights = self._weights
        if self._is_usable(replica):
            await replica.see_to_it(self._health_s)
        elif weights is not None and await replica.load(weights, self._health_s, self._pushes) is None:
            self._believe([replica], weights)

    def _believe(self, replicas: Sequence[Replica], weights: Weights) -> None:
        """Ask these replicas, which have loaded ``weights``, from now on, if what they told is right."""
        for replica in replicas:
            weights.learn(replica.told)
        for replica in replicas:
            replica.believe(weights)
        self._let_in(self._at_once * len(replicas))

    async def _find_replicas(self) -> None:
        """Look the addresses up: new replicas are taken in, dropped ones whose address is gone are forgotten."""
        urls = await replica_urls(self._addresses)
        for url in urls:
            if url not in self._replicas:
                self._replicas[url] = Replica(url, self._engine(url))
        for url in [url for url, replica in self._replicas.items() if replica.fault and url not in urls]:
            log.warning("replica %s is gone", url)
            del self._replicas[url]

    def _engine(self, url: str) -> SGLangEngine:
        return SGLangEngine(url, *self._client)

    def _silence(self) -> Transient:
        faults = "; ".join(f"{url}: {replica.fault}" for url, replica in list(self._replicas.items())[:3])
        return Transient(
            f"no SGLang replica of {', '.join(self._addresses)} was usable for {self._patience_s:g} s ({faults}): see "
            "that they run, that they see the weights' folder under the same path, and start the step again"
        )
