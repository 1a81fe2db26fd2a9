"""The plan of the house: what each folder may import. Lazy imports and those under TYPE_CHECKING count as any other."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "components", "pipelines")
SERVICES = {"boto3", "botocore", "kfp", "kubernetes", "mlflow"}

# From the bottom up; what stands on one line does not import each other.
MODEL = (
    ("boundary",),
    ("codec", "network"),
    ("checkpoint", "data", "optimizer", "plan"),
    ("parallel", "rollout"),
    ("train",),
    ("rl",),
    ("swarm",),
    ("evals",),
)
RUNTIME = (
    ("config", "pages", "store"),
    ("checkpoints", "steps", "tracking"),
    ("datasets",),
    ("step",),
    ("launcher", "sampler"),
    ("kfp",),
)
DATA = (("samples",), ("families", "order", "user"), ("batches",))
SHARED = ("runtime", "outcome_rl", "release", "ablation")
"""Folders of components/ that several steps use. Every other one is a step, which imports no other step."""


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Module -> the modules of ours that it imports anywhere."""
    paths = {_module(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return {
        module: frozenset(_imported(path, path.read_text(), paths.keys())) - {module} for module, path in paths.items()
    }


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, text: str, known: Collection[str]) -> Iterator[str]:
    for name in _named(path, text):
        if name in known or name.rpartition(".")[0] in known:
            yield name if name in known else name.rpartition(".")[0]


def _named(path: Path, text: str) -> Iterator[str]:
    """What a file imports, wherever in the file; a name out of a module with the module before it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{_source(path, node)}.{alias.name}" for alias in node.names)


def _source(path: Path, node: ast.ImportFrom) -> str:
    """The module that ``from ... import`` names; each dot is a folder, the first one that of the file."""
    if not node.level:
        return node.module or ""
    folders = path.relative_to(ROOT).parts[: -node.level]
    return ".".join((*folders, node.module) if node.module else folders)


def upward(package: str, levels: tuple[tuple[str, ...], ...]) -> list[str]:
    """The imports among the entries of ``package`` that do not lead to a lower level."""
    level = {name: number for number, names in enumerate(levels) for name in names}
    found = []
    for module, targets in imports().items():
        for target in targets:
            if module.startswith(f"{package}.") and target.startswith(f"{package}."):
                one, other = (name.removeprefix(f"{package}.").split(".")[0] for name in (module, target))
                if one != other and level[one] <= level[other]:
                    found.append(f"{module} -> {target}")
    return sorted(found)


def entries(package: str) -> set[str]:
    """What can be imported from the top of a folder; its page is none of them."""
    found = (path for path in (ROOT / package).iterdir() if path.is_dir() or path.suffix == ".py")
    return {path.stem for path in found if not path.name.startswith("__")}


def test_no_circle_of_files() -> None:
    try:
        tuple(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_packages_stand_on_each_other_in_one_direction() -> None:
    below = {package: PACKAGES[: number + 1] for number, package in enumerate(PACKAGES)}
    wrong = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if target.split(".")[0] not in below[module.split(".")[0]]
    ]
    assert not wrong


def test_the_network_knows_no_service() -> None:
    wrong = {}
    for path in (ROOT / "model").rglob("*.py"):
        names = {name.split(".")[0] for name in _named(path, path.read_text())}
        if names & SERVICES:
            wrong[str(path)] = names & SERVICES
    assert wrong == {}


@pytest.mark.parametrize(
    ("package", "levels"), [("model", MODEL), ("model.data", DATA), ("components.runtime", RUNTIME)]
)
def test_imports_lead_down(package: str, levels: tuple[tuple[str, ...], ...]) -> None:
    assert entries(package.replace(".", "/")) == {name for names in levels for name in names}
    assert upward(package, levels) == []


def test_the_network_has_few_shelves_on_few_levels() -> None:
    assert len(entries("model")) + 1 <= 14  # and __init__.py
    assert len(MODEL) <= 8


def test_steps_share_through_shelves_and_not_through_each_other() -> None:
    steps = entries("components") - set(SHARED)
    assert not [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if module.startswith("components.")
        and target.startswith("components.")
        and target.split(".")[1] in steps
        and target.split(".")[1] != module.split(".")[1]
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from . import plan", "pipelines.plan"),
        ("from .docs import markdown", "pipelines.docs.markdown"),
        ("from .docs.markdown import table", "pipelines.docs.markdown"),
        ("from pipelines.docs import markdown", "pipelines.docs.markdown"),
        ("import pipelines.plan", "pipelines.plan"),
    ],
)
def test_a_relative_import_counts_as_any_other(line: str, expected: str) -> None:
    assert set(_imported(ROOT / "pipelines" / "cli.py", line, imports().keys())) == {expected}


def test_a_relative_import_may_start_from_a_folder_further_up() -> None:
    line = "def load():\n    from ..plan import x"
    assert set(_imported(ROOT / "pipelines" / "docs" / "markdown.py", line, imports().keys())) == {"pipelines.plan"}
    assert set(_imported(ROOT / "pipelines" / "docs" / "__init__.py", line, imports().keys())) == {"pipelines.plan"}


def imports_by_string(text: str) -> bool:
    """Whether a file imports a module by a name in a string, where the tests above do not see it."""
    called = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return any("import_module" in (getattr(name, "attr", ""), getattr(name, "id", "")) for name in called)


def test_only_the_list_of_steps_and_a_users_tasks_are_imported_by_a_name_in_a_string() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if imports_by_string(path.read_text())
    }
    assert found == {"components/runtime/steps.py", "model/rl/tasks/loading.py"}
