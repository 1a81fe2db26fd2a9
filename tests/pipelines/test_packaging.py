"""The pins say the same thing wherever they are written, and the package holds what it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_lock_file_holds_every_pinned_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = pins((ROOT / "requirements.lock").read_text().splitlines())
    assert len(pins(wanted)) == len(wanted), "every dependency is pinned with =="
    assert {name: locked.get(name) for name in pins(wanted)} == pins(wanted)


def test_torch_is_the_same_version_where_it_is_installed_first() -> None:
    locked = pins((ROOT / "requirements.lock").read_text().splitlines())["torch"]
    for name in ("Makefile", "images/pipeline.Dockerfile"):
        assert f"torch=={locked} " in (ROOT / name).read_text().replace("\n", " "), name


def test_templates_are_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["components"]
    packed = {path for pattern in patterns for path in (ROOT / "components").glob(pattern)}
    templates = {path for path in (ROOT / "components").rglob("*") if path.suffix in (".html", ".svg", ".css")}
    assert len(templates) >= 7 and packed >= templates
