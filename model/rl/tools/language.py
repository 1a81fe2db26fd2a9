"""The language of notebook cells: which programs run (source: ours).

This check protects nothing. It tells a policy in one line what is available, and it stops programs that would only end
the session. A program that gets around it is in an isolated process with nothing to steal
(`model.rl.tools.isolation`).
"""

from __future__ import annotations

import ast
import builtins
import string
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

from model.rl.tools import libraries

BUILTINS = (
    "abs", "all", "any", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float",
    "format", "frozenset", "hash", "hex", "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max",
    "min", "next", "oct", "ord", "pow", "print", "range", "repr", "reversed", "round", "set", "slice", "sorted",
    "str", "sum", "tuple", "zip", "ArithmeticError", "AssertionError", "AttributeError", "BaseException",
    "Exception", "ImportError", "IndexError", "KeyError", "LookupError", "MemoryError", "NameError",
    "NotImplementedError", "OverflowError", "RuntimeError", "StopIteration", "SyntaxError", "TimeoutError",
    "TypeError", "ValueError", "ZeroDivisionError",
)  # fmt: skip
# Names that lead out of the language: to frames and code, to memory that NumPy and PIL do not check, to other modules.
FORBIDDEN = frozenset(
    (
        "gi_frame", "gi_code", "gi_yieldfrom", "cr_frame", "cr_code", "cr_await", "cr_origin", "ag_frame", "ag_code",
        "ag_await", "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "f_trace", "tb_frame", "tb_next", "mro",
        "as_strided", "DummyArray", "ndarray", "recarray", "memmap", "ctypes", "ctypeslib", "cffi", "testing", "f2py",
        "ma", "im", "show", "inspect", "builtins", "sys", "os", "importlib", "subprocess",
    )
)  # fmt: skip
FORMATS = ("format", "format_map")  # methods of str that read attributes, by names in the text
_REACHING = (ast.Attribute, ast.alias, ast.ImportFrom, ast.MatchClass)  # a variable may have any name
_METHOD = "_method"  # a name that no program can write


class _PlainFormatter(string.Formatter):
    """``str.format`` without access to attributes."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise AttributeError("attributes in format strings are not available")
        return super().get_field(field_name, args, kwargs)


def _method(owner: Any, name: str) -> Any:
    """``owner.format`` or ``owner.format_map``; for a text, the one without access to attributes."""
    if owner is str:
        return lambda text, *args, **kwargs: _method(text, name)(*args, **kwargs)
    if not isinstance(owner, str):
        return getattr(owner, name)
    if name == "format_map":
        return lambda mapping: _PlainFormatter().vformat(owner, (), mapping)
    return lambda *args, **kwargs: _PlainFormatter().vformat(owner, args, kwargs)


class _RedirectFormats(ast.NodeTransformer):
    """Sends every read of an attribute in FORMATS through `_method`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr not in FORMATS or not isinstance(node.ctx, ast.Load):
            return node
        call = ast.Call(ast.Name(_METHOD, ast.Load()), [node.value, ast.Constant(node.attr)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _names(node: ast.AST) -> list[str]:
    """Every identifier in the node's own fields: a name, an attribute, an alias, a keyword and so on."""
    if isinstance(node, ast.Constant):
        return []
    found = []
    for _, value in ast.iter_fields(node):
        found += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return [part for name in found for part in name.split(".")]


class RefusedName(NameError):
    """A name that is not available; ``lineno`` is its line in the cell."""

    def __init__(self, message: str, node: ast.AST) -> None:
        super().__init__(message)
        self.lineno = getattr(node, "lineno", 1)


def _check(tree: ast.AST) -> None:
    """Raises RefusedName for a name that is not available."""
    allowed: set[int] = set()  # nodes that only name a type, or a module that an import refuses with a clearer message
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            allowed.update(id(alias) for alias in node.names if "." not in alias.name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            for argument in node.args[1:]:
                allowed.update(map(id, argument.elts if isinstance(argument, ast.Tuple) else [argument]))
        if isinstance(node, ast.ImportFrom) and node.module != "math" and node.names[0].name == "*":
            raise RefusedName(f"import * from {node.module} is not available here", node)
        allowed.update(id(getattr(node, hint, None)) for hint in ("annotation", "returns"))
        for name in _names(node):
            if name.startswith("_") and name != "_":
                raise RefusedName(f"names that start with an underscore are not available: {name}", node)
            given = isinstance(node, ast.alias) and name not in node.name.split(".")  # a variable: import ... as name
            if name in FORBIDDEN and isinstance(node, _REACHING) and not given and id(node) not in allowed:
                raise RefusedName(f"{name} is not available here", node)


def compile_cell(code: str, name: str) -> tuple[CodeType, CodeType | None]:
    """The cell without its last expression, and that expression, whose value is shown; None if none is to be shown.

    Args:
        name: of the cell, which tracebacks give as the file.

    Raises:
        RefusedName: the cell has a name that is not available.
        SyntaxError: it is not Python.
    """
    tree = ast.parse(code, name)
    _check(tree)
    last = tree.body[-1] if tree.body else None
    shown = isinstance(last, ast.Expr) and not _ends_with_semicolon(code, last)
    tree = _RedirectFormats().visit(tree)
    last = tree.body.pop() if shown else None
    tail = compile(ast.Expression(last.value), name, "eval") if isinstance(last, ast.Expr) else None
    return compile(tree, name, "exec"), tail


def _ends_with_semicolon(code: str, last: ast.Expr) -> bool:
    """Whether a semicolon follows the last expression, as in a notebook's cell that is to show no value."""
    assert last.end_lineno is not None and last.end_col_offset is not None
    line = code.encode(errors="replace").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[last.end_lineno - 1]
    return line[last.end_col_offset :].lstrip(b" \t)").startswith(b";")


def namespace() -> dict[str, Any]:
    """The names that the first cell of a session sees."""
    allowed = {name: getattr(builtins, name) for name in BUILTINS}
    allowed |= {"__import__": libraries.import_module, _METHOD: _method}
    return {"__builtins__": allowed, "__name__": "__main__", **libraries.preloaded()}
