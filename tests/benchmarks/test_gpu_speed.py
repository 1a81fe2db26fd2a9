"""The parts of ``gpu_speed.py`` that run on any device; only a GPU tells the time of kernels."""

from __future__ import annotations

import pytest
import torch

from model.network.config import preset
from model.plan.flops import text_forward
from tests.benchmarks.gpu_speed import training, utilisation


def test_both_sides_train_and_their_flops_are_the_models() -> None:
    config = preset("tiny")
    result = training(config, torch.device("cpu"), rows=2, tokens=64, repeats=1)
    assert result["same_logits"] == 1.0
    for side in ("train", "peer_train"):
        flops = result[f"{side}_tflops"] * 1e12 / result[f"{side}_tokens_per_s"]
        assert flops == pytest.approx(3 * text_forward(config, 64))
    assert set(result) == {"train_ratio", "train_tokens_per_s", "peer_train_tokens_per_s", "peer_train",
                           "train_muonclip_ratio", "train_muonclip_tokens_per_s", "train_tflops", "peer_train_tflops",
                           "same_logits"}  # fmt: skip


def test_utilisation_is_of_the_dense_peak_and_unknown_on_other_devices() -> None:
    measured = {"train_tflops": 98.9, "peer_train_tflops": 49.45}
    assert utilisation("NVIDIA H200", measured) == pytest.approx({"mfu": 0.1, "peer_mfu": 0.05})
    assert utilisation("NVIDIA T4", measured) == {"mfu": None, "peer_mfu": None}
