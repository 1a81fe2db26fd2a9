"""The loss of a model on held-out samples, which is far less noisy than the share of right answers (source: ours).

Every sample is read once with its true tokens (teacher forcing): 64 samples give hundreds of targets, where greedy
decoding gives 64 zeros and ones. Bits per byte of a text do not depend on the tokenizer.

Shapes: N targets of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch

from model.boundary.untrusted_text import well_formed
from model.data.batches.folder import DataFolder
from model.data.batches.packing import pack
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample, tokenize
from model.evals.suites import readable
from model.network.batch import Batch
from model.network.forward_context import ForwardContext
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products

FORWARD_TOKENS = 8192  # most tokens of one forward, which bounds its memory


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of several samples together.

    Attributes:
        nats: -log p of all their targets, natural logarithm.
        targets: number of predicted tokens: the assistant's turns of a task, the text of a document.
        text_bytes: UTF-8 bytes of the text of documents; conversations add 0.
    """

    nats: float
    targets: int
    text_bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean over the targets, in nats; lower is better."""
        return self.nats / self.targets

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of documents, whose end tokens are included; lower is better."""
        return self.nats / math.log(2) / self.text_bytes


class HeldOut:
    """Held-out samples of several families, tokenized and packed once for any number of evaluations.

    Args:
        samples: family -> its samples.
        text_bytes: family -> UTF-8 bytes of the text of its documents.
        pad_id: token that fills the packed rows.
    """

    def __init__(
        self, samples: Mapping[str, Sequence[TokenizedSample]], text_bytes: Mapping[str, int], pad_id: int
    ) -> None:
        self._text_bytes = text_bytes
        self._batches = {
            family: [pack(part, pad_id) for part in portions(members, FORWARD_TOKENS)]
            for family, members in samples.items()
        }

    @classmethod
    def of(cls, data: DataFolder, families: Iterable[str], count: int) -> Self:
        """The first ``count`` held-out samples of each family, or all of them if there are fewer; see `readable`.

        Raises:
            MoonflowError: a family has no held-out samples, or too many of them cannot be read.
        """
        samples, text_bytes = {}, {}
        for family in families:
            chosen = list(islice(readable(data, family), count))
            samples[family] = [tokenize(sample, data.tokenizer, data.image_config) for sample in chosen]
            text_bytes[family] = sum(trained_bytes(sample) for sample in chosen)
        return cls(samples, text_bytes, data.tokenizer.pad_id)

    def likelihood(self, model: KimiK25) -> dict[str, Likelihood]:
        """Family -> likelihood. Products are ``narrow_products``, as in training; the model's mode stays as it was."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return {
                    family: Likelihood(
                        sum(_nats(model, batch) for batch in batches),
                        sum(len(batch.targets_N) for batch in batches),
                        self._text_bytes[family],
                    )
                    for family, batches in self._batches.items()
                }
        finally:
            model.train(training)


def _nats(model: KimiK25, batch: Batch) -> float:
    context = ForwardContext(narrow_products(batch.input_ids_BT.device))
    return -float(model.logprobs(batch, context=context).double().sum())


def trained_bytes(sample: Sample) -> int:
    """UTF-8 bytes of the text of a document that the loss covers; 0 for a conversation."""
    trained = (each["text"] for each in sample.segments if each["type"] == "text" and each["loss"])
    return sum(len(well_formed(text).encode()) for text in trained)


def portions(samples: Sequence[TokenizedSample], tokens: int) -> list[list[TokenizedSample]]:
    """Split samples, in order, into parts of at most ``tokens`` tokens; a longer sample is a part by itself."""
    parts: list[list[TokenizedSample]] = []
    room = 0
    for sample in samples:
        length = len(sample.input_ids)
        if not parts or length > room:
            parts.append([])
            room = tokens
        parts[-1].append(sample)
        room -= length
    return parts
