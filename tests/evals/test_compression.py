"""Bits per byte: every token once, against the network's own logits; n-grams against counting by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.evals.byte_ngram import ByteNgram
from model.evals.compression import bits_per_byte, compressors, windows
from model.network.config import preset
from model.network.initial import new_model
from tests.corpus import corpus, small_tokenizer


def test_windows_count_every_token_once_with_context_before_it() -> None:
    tokenizer = small_tokenizer()
    document = "".join(corpus()[:4])
    ids = tokenizer.encode(document)
    found = windows(document, tokenizer, tokens=64, stride=20)
    counted = torch.cat([window.input_ids[window.loss_mask] for window in found])
    assert counted.tolist() == ids and len(found) > 10
    for number, window in enumerate(found):
        assert window.input_ids[0] == tokenizer.bos_id and len(window.input_ids) <= 64 and not window.loss_mask[0]
        context = len(window.input_ids) - 1 - int(window.loss_mask.sum())
        assert context == 0 if number == 0 else context >= 64 - 20 - 1
    assert windows("", tokenizer, 64, 20) == []


def test_bits_are_those_of_the_logits() -> None:
    tokenizer = small_tokenizer()
    documents = ["def run(self):\n    return self.value\n", "# größer\n"]
    model = new_model(preset("tiny"), seed=1).eval()
    nats = 0.0
    for document in documents:
        ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(document)])
        batch = pack([TokenizedSample(ids, torch.arange(len(ids)) > 0, None, [])], tokenizer.pad_id)
        with torch.no_grad():
            logits = model(batch).double()
        nats -= float(logits.log_softmax(-1).gather(1, ids[1:, None]).sum())
    size = sum(len(document.encode()) for document in documents)
    measured = bits_per_byte(model, tokenizer, documents, tokens=128, stride=64)
    assert measured == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_an_ngram_model_is_kneser_neys_formula() -> None:
    training, text = [b"abracadabra", b"cab"], b"abrab"
    trigrams = Counter((b"\0\0" + d)[i : i + 3] for d in training for i in range(len(d)))
    bigrams = Counter(gram[1:] for gram in trigrams)  # different bytes before them
    unigrams = Counter(gram[1:] for gram in bigrams)

    def smoothed(counts: Counter[bytes], context: bytes, byte: bytes, lower: float) -> float:
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        discount = min(0.99, once / (once + 2 * twice)) if once else 0.5
        following = {gram: count for gram, count in counts.items() if gram[:-1] == context}
        if not following:
            return lower
        kept = max(0, counts[context + byte] - discount)
        return (kept + discount * len(following) * lower) / sum(following.values())

    expected = []
    for i in range(len(text)):
        context, byte = (b"\0\0" + text)[i : i + 2], text[i : i + 1]
        p = smoothed(unigrams, b"", byte, 1 / 256)
        p = smoothed(bigrams, context[1:], byte, p)
        expected.append(smoothed(trigrams, context, byte, p))
    np.testing.assert_allclose(ByteNgram(training, 3).probabilities([text]), expected, rtol=1e-12)


def test_the_probabilities_of_all_bytes_sum_to_one() -> None:
    model = ByteNgram([part.encode() for part in corpus()[:40]], 8)
    for context in (b"", b"self.ar", b"\xff\xfe", b"def __init__"):
        every = [context + bytes([byte]) for byte in range(256)]
        last = model.probabilities(every).reshape(256, -1)[:, -1]
        assert last.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="order"):
        ByteNgram([b"a"], 9)


def test_compressors_know_what_they_have_seen() -> None:
    documents = [part.encode() for part in corpus()[:20]]
    bits = compressors(documents, documents)
    assert bits["xz_after_training"] < 0.2 < bits["xz"] < bits["xz_apart"] < 8
    assert bits["gzip"] < bits["gzip_apart"]
