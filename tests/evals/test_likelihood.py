"""Held-out likelihood against each sample read alone, in plain float32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from model.data.batches.folder import DataFolder
from model.data.batches.packing import pack
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from model.evals.likelihood import HeldOut, Likelihood, portions, trained_bytes
from model.network.config import preset
from model.network.initial import new_model
from tests.tiny_folders import write_data_folder


def test_nats_are_those_of_each_sample_alone(tmp_path: Path) -> None:
    data = DataFolder(write_data_folder(tmp_path, count=3))
    model = new_model(preset("tiny"), seed=3)
    model.train()
    found = HeldOut.of(data, ["fact_qa", "digit_string"], 3).likelihood(model)
    assert model.training and all(not router.load_E.any() for router in model.routers())
    model.eval()
    for family, likelihood in found.items():
        nats, targets = 0.0, 0
        for sample in data.samples(family, "eval"):
            tokens = tokenize(sample, data.tokenizer, data.image_config)
            batch = pack([tokens], data.tokenizer.pad_id)
            with torch.no_grad():
                logits = model(batch).double()
            picked = logits.gather(1, batch.targets_N[:, None]).squeeze(1)
            nats += float((logits.exp().sum(1).log() - picked).sum())
            targets += int(tokens.loss_mask[1:].sum())
        assert likelihood.targets == targets and likelihood.text_bytes == 0
        assert likelihood.nats == pytest.approx(nats, rel=0.02)  # bfloat16 products


def test_bits_per_byte() -> None:
    assert Likelihood(nats=8 * math.log(2), targets=4, text_bytes=16).bits_per_byte == pytest.approx(0.5)
    assert Likelihood(nats=6.0, targets=4).loss == 1.5


def test_bytes_are_those_under_the_loss() -> None:
    from model.data.families import FAMILIES

    document = FAMILIES["stdlib_text"].sample(0, "eval", 0)
    (segment,) = document.segments
    assert trained_bytes(document) == len(segment["text"].encode("utf-8"))
    assert trained_bytes(FAMILIES["fact_qa"].sample(0, "eval", 0)) == 0


def test_half_a_character_counts_as_the_character_that_is_read_for_it() -> None:
    segments = [{"type": "text", "text": "ab\ud83d", "loss": True}]
    assert trained_bytes(Sample("k", "f", "knowledge", "text", "s", segments=segments)) == len("ab\ufffd".encode())


def test_portions_keep_order_and_bound(tmp_path: Path) -> None:
    data = DataFolder(write_data_folder(tmp_path, count=4))
    samples = [tokenize(sample, data.tokenizer, data.image_config) for sample in data.samples("array_tool", "eval")]
    lengths = [len(sample.input_ids) for sample in samples]
    parts = portions(samples, sum(lengths[:2]))
    assert [sample for part in parts for sample in part] == samples
    assert all(sum(len(s.input_ids) for s in part) <= sum(lengths[:2]) or len(part) == 1 for part in parts)
    assert len(portions(samples, 1)) == len(samples)
