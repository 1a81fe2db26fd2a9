"""The pins say the same thing wherever they are written, and imports go down only."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("model", "components", "pipelines")
OUTSIDE = {"kfp", "kubernetes", "mlflow", "boto3", "botocore"}


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


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room: str) -> None:
    above = set(ROOMS[ROOMS.index(room) + 1 :]) | (OUTSIDE if room == "model" else set())
    wrong = {str(path.relative_to(ROOT)): imported(path) & above for path in (ROOT / room).rglob("*.py")}
    assert {path: names for path, names in wrong.items() if names} == {}
