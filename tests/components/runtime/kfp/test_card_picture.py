"""The card as a browser draws it; ``card.png`` next to this file is what it looked like when it was last changed."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from components.runtime.checkpoints.manifest import File
from components.runtime.kfp.card import step_card
from tests.published import manifest_of

CHROMIUM = shutil.which("chromium")
KEPT = Path(__file__).with_name("card.png")
CURVE = (0x2A, 0x78, 0xD6)
MANIFEST = manifest_of(
    "joint_pretrain", 9, "run-7", files=[File(name="model.safetensors", size=8, sha256="0" * 64)],
    tokens_seen=1_792_000, mlflow_run_id="3f2a9c", git_commit="f" * 40,
    extra={"seconds": 611.2, "inputs": {"data": "s3://moonflow/runs/run-7/prepare_data/1"}},
)  # fmt: skip
STYLE = "body{font:14px sans-serif}table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:3px 8px}"


def page() -> str:
    """The card as HTML, as Kubeflow's UI makes it: without HTML of the Markdown's own, with pictures of any kind."""
    noise = random.Random(0)
    loss = [1.5 + 5 * math.exp(-n / 200) + noise.gauss(0, 0.1) for n in range(0, 1750, 5)]
    history = [{"step": 5.0 * n, "loss/total": value} for n, value in enumerate(loss)]
    card = step_card(MANIFEST, kept=False, history=history)
    html = MarkdownIt("js-default", {"html": False}).enable("table").render(card)
    # This renderer's own rule refuses SVG.
    html = re.sub(r"!\[([^]]*)\]\((data:image/svg[^)]*)\)", r'<img alt="\1" src="\2">', html)
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{html}"


def curve(path: Path) -> tuple[int, int]:
    """How many pixels have the curve's colour, and over how many columns."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    near = (np.abs(pixels - CURVE) < 24).all(-1)
    return int(near.sum()), int(near.any(0).sum())


def test_the_kept_picture_shows_the_curve() -> None:
    count, columns = curve(KEPT)
    assert columns > 400 and count < 5000, "a line, no filled area"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_draws_the_curve_from_the_card_alone(tmp_path: Path) -> None:
    (tmp_path / "card.html").write_text(page())
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,560"]
    shot = f"--screenshot={tmp_path / 'card.png'}"
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", shot, str(tmp_path / "card.html")]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    count, columns = curve(tmp_path / "card.png")
    assert columns > 400 and count < 5000
