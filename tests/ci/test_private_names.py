"""Tests use what the code offers: a constant, an argument, a remote party; never a private name of what they test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
OTHERS = {  # of Python and of libraries
    "_attn_implementation", "_dispatch_mla_subtype", "_exit", "_from_config", "_replace",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(source: str) -> Iterator[str]:
    """Private names, with their line, that a module patches, imports, or reads from anything but its own ``self``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            yield from (f"line {node.lineno}: {text}" for text in texts if is_private(str(text).rpartition(".")[2]))


def test_no_test_uses_a_private_name() -> None:
    found = {path: list(private_names(path.read_text())) for path in TESTS.rglob("*.py")}
    used = [f"{path.relative_to(TESTS)}, {name}" for path, names in found.items() for name in names]
    assert [name for name in used if name.rpartition(".")[2] not in OTHERS] == []
    left = {name.rpartition(".")[2] for name in used}
    assert left == OTHERS, "an exception that nobody needs any more"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("monkeypatch.setattr(s3, '_ATTEMPTS', 2)", ["line 1: _ATTEMPTS"]),
        ("patch.setattr('a.b._c', 2)", ["line 1: a.b._c"]),
        ("monkeypatch.setattr(Engine, '__init__', x)\nmonkeypatch.setattr(s3, 'ATTEMPTS', '_')", []),
        ("from a import _b, c", ["line 1: _b"]),
        ("x = 1\nassert engine.store._base == x", ["line 2: engine.store._base"]),
        ("class A:\n    def b(self):\n        return self._c.__name__", []),
    ],
)
def test_private_names_are_seen(source: str, names: list[str]) -> None:
    assert list(private_names(source)) == names
