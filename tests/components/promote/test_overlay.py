"""What a promotion writes to Git comes back as it was, whatever letters an address has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.promote import overlay
from components.promote.overlay import Change

ROOT = Path(__file__).parents[3]


NAMES = ("plain", "a#b", "a #b", "a?b=c&d", "100%", "a%20b", "a b", "a: b", "ü-漢", "'a'", '"a"', "$(X)")


@pytest.mark.parametrize("name", NAMES)
def test_an_address_comes_back_literally(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kustomization.yaml"
    shutil.copy(ROOT / "manifests" / "overlays" / "dev" / "kustomization.yaml", path)
    uri = f"s3://moonflow/runs/{name}/export/1"
    overlay.write(path, Change(uri, "a" * 64))
    assert overlay.read(path) == (uri, "a" * 64)
