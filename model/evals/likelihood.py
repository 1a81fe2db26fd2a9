"""How likely a model finds held-out samples: a measure with far less noise than the share of right answers (ours).

Every sample is read once with its true tokens (teacher forcing), so 64 samples are worth some hundred targets where
greedy decoding gives 64 zeros and ones. What a text costs in bits per byte does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch

from model.data.folder import DataFolder
from model.data.packing import Batch, pack
from model.data.sample import Sample
from model.data.tokenize import TokenizedSample, tokenize
from model.evals.tasks import readable
from model.foreign_text import well_formed
from model.multimodal import KimiK25
from model.precision import products_in

READ_AT_ONCE = 8192  # tokens: bounds the memory of one forward


@dataclass(frozen=True)
class Likelihood:
    """Of some samples together.

    Attributes:
        nats: -log p of all their targets, natural logarithm.
        targets: tokens that are predicted: the assistant's turns of a task, the text of a document.
        text_bytes: UTF-8 bytes of documents' trained text; 0 where a sample is a conversation.
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
        """Of documents, their end token included; lower is better."""
        return self.nats / math.log(2) / self.text_bytes


class HeldOut:
    """Held-out samples of several families, tokenized and packed once, to be read by a model any number of times.

    Args:
        samples: family -> its samples.
        text_bytes: family -> UTF-8 bytes of its documents' trained text.
        pad_id: fills up the packed rows.
    """

    def __init__(
        self, samples: Mapping[str, Sequence[TokenizedSample]], text_bytes: Mapping[str, int], pad_id: int
    ) -> None:
        self._text_bytes = text_bytes
        self._batches = {
            family: [pack(part, pad_id) for part in portions(members, READ_AT_ONCE)]
            for family, members in samples.items()
        }

    @classmethod
    def of(cls, data: DataFolder, families: Iterable[str], count: int) -> Self:
        """The first ``count`` eval samples of each family (fewer if there are fewer), as `readable` gives them.

        Raises MoonflowError for a family without eval samples.
        """
        samples, text_bytes = {}, {}
        for family in families:
            chosen = list(islice(readable(data, family), count))
            samples[family] = [tokenize(sample, data.tokenizer, data.image_config) for sample in chosen]
            text_bytes[family] = sum(trained_bytes(sample) for sample in chosen)
        return cls(samples, text_bytes, data.tokenizer.pad_id)

    def likelihood(self, model: KimiK25) -> dict[str, Likelihood]:
        """By family; products are bfloat16, as in training. Leaves the model in the mode in which it came."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), products_in(torch.bfloat16):
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
    return -float(model.logprobs(batch).double().sum())


def trained_bytes(sample: Sample) -> int:
    """UTF-8 bytes of a document's text under the loss; 0 for a conversation."""
    trained = (each["text"] for each in sample.segments if each["type"] == "text" and each["loss"])
    return sum(len(well_formed(text).encode()) for text in trained)


def portions(samples: Sequence[TokenizedSample], tokens: int) -> list[list[TokenizedSample]]:
    """Neighbours together as long as they have at most ``tokens`` tokens; a longer sample stands alone."""
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
