"""Cells of a kernel: which programs are let run, and what running one shows.

The check of the language is help, not a wall: it tells a policy in one line what there is here, and it stops what
would only end the session. A program that finds a way around it is in a process with nothing to take (`walls`).
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import math
import resource
import signal
import string
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

import numpy as np
import numpy.fft
import numpy.linalg
import numpy.ma
import numpy.polynomial
import numpy.random  # noqa: F401  (loaded before the fork: a session may open no file)

GRACE_S = 0.5  # processor seconds for a call in C to return after a cell's limit, before its process is killed (ours)
MODULES = ("numpy", "math")
BUILTINS = (
    "abs", "all", "any", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float",
    "format", "frozenset", "hash", "hex", "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max",
    "min", "next", "oct", "ord", "pow", "print", "range", "repr", "reversed", "round", "set", "slice", "sorted",
    "str", "sum", "tuple", "zip", "ArithmeticError", "AssertionError", "AttributeError", "BaseException",
    "Exception", "ImportError", "IndexError", "KeyError", "LookupError", "MemoryError", "NameError",
    "NotImplementedError", "OverflowError", "RuntimeError", "StopIteration", "SyntaxError", "TimeoutError",
    "TypeError", "ValueError", "ZeroDivisionError",
)  # fmt: skip
# Names that lead out of the language: of frames and code, of memory that NumPy does not check, of other modules.
DOORS = frozenset(
    (
        "gi_frame", "gi_code", "gi_yieldfrom", "cr_frame", "cr_code", "cr_await", "cr_origin", "ag_frame", "ag_code",
        "ag_await", "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "f_trace", "tb_frame", "tb_next", "mro",
        "as_strided", "DummyArray", "ndarray", "recarray", "memmap", "ctypes", "ctypeslib", "cffi", "testing", "f2py",
        "ma", "inspect", "builtins", "sys", "os", "importlib", "subprocess",
    )
)  # fmt: skip
FORMATS = ("format", "format_map")  # of a str: they read attributes, by names in a text
_REACHING = (ast.Attribute, ast.alias, ast.ImportFrom, ast.MatchClass)  # a variable may have any name
_METHOD = "_method"  # no program can write the name


class _Plain(string.Formatter):
    """``str.format`` without the attributes of what it formats."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise AttributeError("attributes in format strings are not available")
        return super().get_field(field_name, args, kwargs)


def _method(owner: Any, name: str) -> Any:
    """``owner.format``, of texts the plain one."""
    if owner is str:
        return lambda text, *args, **kwargs: _method(text, name)(*args, **kwargs)
    if not isinstance(owner, str):
        return getattr(owner, name)
    if name == "format_map":
        return lambda mapping: _Plain().vformat(owner, (), mapping)
    return lambda *args, **kwargs: _Plain().vformat(owner, args, kwargs)


class _Formats(ast.NodeTransformer):
    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr not in FORMATS or not isinstance(node.ctx, ast.Load):
            return node
        call = ast.Call(ast.Name(_METHOD, ast.Load()), [node.value, ast.Constant(node.attr)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _names(node: ast.AST) -> list[str]:
    """Every identifier that a node itself holds, wherever its field: a name, an attribute, an alias, a keyword..."""
    if isinstance(node, ast.Constant):
        return []
    found = []
    for _, value in ast.iter_fields(node):
        found += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return [part for name in found for part in name.split(".")]


def _check(tree: ast.AST) -> None:
    asked: set[int] = set()  # nodes that only ask for a type, or for a module that `_import` refuses in clearer words
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked.update(id(alias) for alias in node.names if "." not in alias.name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            for argument in node.args[1:]:
                asked.update(map(id, argument.elts if isinstance(argument, ast.Tuple) else [argument]))
        if isinstance(node, ast.ImportFrom) and node.module != "math" and node.names[0].name == "*":
            raise NameError(f"import * from {node.module} is not available here")
        asked.update(id(getattr(node, hint, None)) for hint in ("annotation", "returns"))
        for name in _names(node):
            if name.startswith("_") and name != "_":
                raise NameError(f"names that start with an underscore are not available: {name}")
            if name in DOORS and isinstance(node, _REACHING) and id(node) not in asked:
                raise NameError(f"{name} is not available here")


def _compile(code: str) -> tuple[CodeType, CodeType | None]:
    """The cell without its last expression, and that expression (whose value is displayed)."""
    tree = ast.parse(code, "<cell>")
    _check(tree)
    tree = _Formats().visit(tree)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    tail = compile(ast.Expression(last.value), "<cell>", "eval") if isinstance(last, ast.Expr) else None
    return compile(tree, "<cell>", "exec"), tail


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    if name.split(".")[0] not in MODULES:  # numpy's own C code passes here too, for its private modules
        raise ImportError(f"only {' and '.join(MODULES)} can be imported here, not {name}")
    return builtins.__import__(name, *args, **kwargs)


def namespace() -> dict[str, Any]:
    """What a kernel's programs see at first."""
    allowed = {name: getattr(builtins, name) for name in BUILTINS}
    allowed |= {"__import__": _import, _METHOD: _method}
    return {"__builtins__": allowed, "__name__": "__main__", "np": np, "math": math}


class _Bounded(io.TextIOBase):
    """Standard output of a cell: the first ``limit`` characters are kept, the rest is counted."""

    def __init__(self, limit: int) -> None:
        self.limit, self.kept, self.total = limit, "", 0

    def write(self, text: str) -> int:
        self.kept += text[: self.limit - len(self.kept)]
        self.total += len(text)
        return len(text)

    def text(self) -> str:
        dropped = self.total - len(self.kept)
        return self.kept.rstrip("\n") + (f"... [{dropped} more characters]" if dropped else "")


def run_cell(code: str, names: dict[str, Any], *, cpu_s: float, output_chars: int) -> str:
    """Run one cell in ``names``; what it printed, then its last value, or its last traceback line.

    After ``cpu_s`` processor seconds it gets a TimeoutError; the kernel kills the process (SIGXCPU) where that does
    not end it, as in one long call of C, within ``GRACE_S`` and the second to which the kernel rounds.
    """
    out = _Bounded(output_chars)
    _limit_process(cpu_s + GRACE_S)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            with contextlib.redirect_stdout(out):
                body, tail = _compile(code)
                exec(body, names)
                value = eval(tail, names) if tail is not None else None
                if value is not None:
                    print(repr(value))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except BaseException as error:
        out.write(_last_line(error))
    return out.text()


def _last_line(error: BaseException) -> str:
    """Of the traceback. The error is the program's: that it can be shown is not sure."""
    name = "Exception"
    try:
        name = type(error).__name__.removeprefix("_")
        message = " ".join(str.split(str(error)))
    except BaseException as another:
        message = f"(its message cannot be shown: {type(another).__name__})"
    return f"{name}: {message}" if message else name


def _limit_process(more_s: float) -> None:
    """The kernel sends SIGXCPU after so many more processor seconds, in whole seconds of the process's life."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + more_s)
    resource.setrlimit(resource.RLIMIT_CPU, (min(soft, hard - 1), hard))


def interrupt_cells() -> None:
    """Have the end of a cell's processor time raise a TimeoutError in it."""
    signal.signal(signal.SIGPROF, _timed_out)


def _timed_out(signum: int, frame: object) -> None:
    raise TimeoutError("the cell ran too long")
