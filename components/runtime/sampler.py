"""What a step samples with: the embedded engine, or SGLang replicas that are given the weights (source: ours)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Protocol

from components.runtime.config import SamplingConfig
from components.runtime.step import StepContext
from model.checkpoint.export import export
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.data.samples.sample import MODALITIES
from model.network.multimodal import KimiK25
from model.network.served import PublishedCopy
from model.parallel.ranks import Ranks
from model.rollout.addresses import parse_addresses
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import RolloutEngine
from model.rollout.sglang_pool import SGLangPool

SEEN = {"embedded": MODALITIES, "sglang": tuple(name for name in MODALITIES if name != "video")}
"""The modalities that each engine takes for this model."""


class Sampler(Protocol):
    """An engine, and how it gets weights."""

    @property
    def engine(self) -> RolloutEngine:
        """What generates; not before the first ``publish``."""
        ...

    async def publish(self, model: KimiK25) -> None:
        """Sample from ``model`` from now on; every rank calls it, with the whole model. Requests may be under way.

        Raises:
            Transient: no SGLang replica is reachable.
            MoonflowError: no replica takes the weights.
        """
        ...

    def close(self) -> None:
        """Remove the weights that were written; nothing is sampled after it."""
        ...


class EmbeddedSampler:
    """Samples from the very model that it is given, and copies nothing; or from a copy of it.

    Args:
        copies: of the weights, so that they may be trained while it samples; a publish then does not wait for the
            requests in flight, whose rest is sampled from the new weights.
    """

    def __init__(self, model: KimiK25, max_batch: int, copies: bool = False) -> None:
        self.engine = EmbeddedEngine(model, max_batch)
        self._copy = PublishedCopy() if copies else None

    async def publish(self, model: KimiK25) -> None:
        if self._copy is None:
            self.engine.set_model(model)
        else:
            self.engine.switch_model(self._copy.of(model))

    def close(self) -> None:
        """Nothing was written."""


class SGLangSampler:
    """Writes a checkpoint in float32 for each set of weights; the replicas load it.

    The first rank writes and pushes; the others ask replicas that name the same weights.

    Args:
        folder: for the checkpoints; emptied now. The newest one stays, for replicas that come back.
        breaks_off: whether requests may be under way at a publish, which then breaks them off; their rest is sampled
            from the new weights.
    """

    def __init__(
        self, addresses: str, folder: Path, tokenizer: Tokenizer, image_config: ImageConfig, ranks: Ranks,
        breaks_off: bool = False,
    ) -> None:  # fmt: skip
        self.engine: SGLangPool = SGLangPool(
            parse_addresses(addresses), tokenizer.media_pad_id, image_config, pushes=ranks.first, breaks_off=breaks_off
        )
        self._folder, self._tokenizer, self._images, self._ranks = folder, tokenizer, image_config, ranks
        self._count = 0
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)

    async def publish(self, model: KimiK25) -> None:
        if self._ranks.first:
            self._count += 1
            newest = self._folder / f"{self._count}"
            await asyncio.to_thread(export, model, self._tokenizer, newest, image_config=self._images)
            await self.engine.update_weights(newest)
            shutil.rmtree(self._folder / f"{self._count - 1}", ignore_errors=True)
        version = self._ranks.gather(self.engine.weight_version)[0]
        if not self._ranks.first:
            await self.engine.follow(version)

    def close(self) -> None:
        if self._ranks.first:
            shutil.rmtree(self._folder, ignore_errors=True)


def sampler(
    config: SamplingConfig,
    addresses: str,
    model: KimiK25,
    max_batch: int,
    context: StepContext,
    data: DataFolder,
    name: str = "policy",
    *,
    while_trained: bool = False,
) -> Sampler:
    """SGLang replicas at ``addresses``; without them the embedded engine with ``model``, in ``max_batch`` rows.

    ``while_trained``: it samples while ``model`` is trained and published: the embedded engine from a copy; replicas,
    which have copies anyway, break off what they generate at each publish.
    """
    if addresses:
        return sglang_sampler(config, addresses, context, data, name, breaks_off=while_trained)
    return EmbeddedSampler(model, max_batch, while_trained)


def sglang_sampler(
    config: SamplingConfig,
    addresses: str,
    context: StepContext,
    data: DataFolder,
    name: str = "policy",
    *,
    breaks_off: bool = False,
) -> SGLangSampler:
    """SGLang replicas at ``addresses``; ``name`` tells apart the weights of a step's engines; ``breaks_off`` as for
    ``SGLangSampler``."""
    base = Path(config.weights_folder) / context.run_id if config.weights_folder else context.work.parent
    folder = base / f"{context.step}-weights" / name  # not in the work folder itself, which is published
    return SGLangSampler(addresses, folder, data.tokenizer, data.image_config, context.ranks, breaks_off)
