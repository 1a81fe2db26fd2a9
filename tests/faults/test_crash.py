from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.services import Services
from tests.benchmarks.crash import SETTINGS, Bench, Trap, run

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_a_killed_training_ends_with_the_same_bits(services: Services, tmp_path: Path) -> None:
    """Three of the benchmark's points: in a save, after a truncated upload, and with the newest checkpoint torn."""
    settings = {**SETTINGS, "steps": 12, "checkpoint_every": 3}
    with Trap(services.environment["AWS_ENDPOINT_URL_S3"]) as trap:
        results = run(Bench(services, trap, tmp_path, settings), points=3, seed=5, kinds=("save", "short", "torn"))
    assert [told["survived"] for told in results] == [True] * 3, results
    assert any(told["published"] >= 0 for told in results), "there was no checkpoint to continue from"
