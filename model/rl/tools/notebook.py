"""Notebook cells: what a session runs, and what the policy sees of each run (source: ours).

`language` says which programs run, `libraries` what they import.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import resource
import signal
from types import TracebackType
from typing import Any

from model.rl.tools.language import RefusedName, compile_cell

GRACE_S = 0.5  # processor seconds in which a call in C may return after a cell's limit, before a kill (ours)
LINE_CHARS = 80  # of a program's line in a traceback (ours)
_ADDRESS = re.compile(" at 0x[0-9a-fA-F]+(?=>)")


class _BoundedOutput(io.TextIOBase):
    """The standard output of a cell: it keeps the first ``limit`` characters and counts the rest.

    Addresses of objects are left out (``<function f>``), because they differ from one server to the next.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.kept, self.total = limit, "", 0

    def write(self, text: str) -> int:
        plain = _ADDRESS.sub("", text) if " at 0x" in text else text
        self.kept += plain[: self.limit - len(self.kept)]
        self.total += len(plain)
        return len(text)

    def text(self, error: str) -> str:
        """The output, then the error if there is one: of a long output, less is kept before an error."""
        error = _cut(error, self.limit, len(error)) if error else ""
        shown = _cut(self.kept, self.limit - len(error), self.total)
        return f"{shown}\n{error}" if shown and error else shown + error


def _cut(text: str, limit: int, total: int) -> str:
    """At most the first ``limit`` characters, without newlines at the end, and how many of ``total`` are left out."""
    kept = text[: max(limit, 0)]
    dropped = total - len(kept)
    return kept.rstrip("\n") + (f"... [{dropped} more characters]" if dropped else "")


class _TimeoutError(TimeoutError):
    """The cell's processor time is over: where it was then depends on the machine, so no line is shown."""


class Notebook:
    """Runs the cells of a session, and remembers them for tracebacks.

    A server makes one, and each session's process has its own copy.

    Args:
        cpu_s: processor seconds of a cell. Then it gets a TimeoutError. If that does not end it (one long call in C,
            say), the kernel kills the process with SIGXCPU, after ``GRACE_S`` more, rounded up to a whole second.
        output_chars: characters of a cell's output that are kept.
    """

    def __init__(self, *, cpu_s: float, output_chars: int) -> None:
        self._cpu_s, self._output_chars = cpu_s, output_chars
        self._cells: dict[str, str] = {}  # name -> code

    def run(self, code: str, names: dict[str, Any]) -> str:
        """Run one cell in ``names``, which it may change; a cell that fails leaves what was defined before.

        Returns:
            What the cell printed, then the value of its last expression, as ``repr`` writes it; a cell that ends with
            a semicolon and None show no value. Of an error, the lines of the program where it arose, then its type
            and message.
        """
        out, error = _BoundedOutput(self._output_chars), ""
        cell = f"<cell {len(self._cells) + 1}>"
        self._cells[cell] = code
        _limit_process(self._cpu_s + GRACE_S)
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, self._cpu_s)
                with contextlib.redirect_stdout(out):
                    body, tail = compile_cell(code, cell)
                    exec(body, names)
                    value = eval(tail, names) if tail is not None else None
                    if value is not None:
                        print(repr(value))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except BaseException as raised:
            error = "\n".join([*self._lines(raised, cell), _last_line(raised)])
        return out.text(error)

    def _lines(self, error: BaseException, cell: str) -> list[str]:
        """The line of this cell at which the error came up, and the line, of any cell, at which it arose."""
        try:
            if isinstance(error, _TimeoutError):
                return []
            places = _places(error.__traceback__, self._cells)
            if isinstance(error, RefusedName) or (isinstance(error, SyntaxError) and error.filename == cell):
                places = [(cell, error.lineno or 1)]
            return [self._line(*place, cell) for place in dict.fromkeys((*places[:1], *places[-1:]))]
        except BaseException:  # for want of memory, say: the error itself says more than this one
            return []

    def _line(self, of: str, number: int, cell: str) -> str:
        lines = re.split("\r\n|\r|\n", self._cells[of])
        text = lines[number - 1].strip() if number <= len(lines) else ""
        text = text if len(text) <= LINE_CHARS else text[:LINE_CHARS] + "..."
        return f"line {number}{'' if of == cell else f' of {of[1:-1]}'}: {text}"


def _places(trace: TracebackType | None, cells: dict[str, str]) -> list[tuple[str, int]]:
    """(cell, line number) of each step of a traceback in a program, from the outermost."""
    found = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in cells:
            found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _last_line(error: BaseException) -> str:
    """The last line of a traceback. The program may have made the error so that it cannot be shown."""
    name = "Exception"
    try:
        name = "NameError" if isinstance(error, RefusedName) else type(error).__name__.removeprefix("_")
        message = " ".join(str.split(str(error.msg if isinstance(error, SyntaxError) and error.msg else error)))
    except BaseException as another:
        message = f"(its message cannot be shown: {type(another).__name__})"
    return f"{name}: {message}" if message else name


def _limit_process(more_s: float) -> None:
    """Have the kernel send SIGXCPU after ``more_s`` more processor seconds, which it rounds up to whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + more_s)
    resource.setrlimit(resource.RLIMIT_CPU, (min(soft, hard - 1), hard))


def interrupt_cells() -> None:
    """Raise a TimeoutError in a cell when its processor time is over."""
    signal.signal(signal.SIGPROF, _timed_out)


def _timed_out(signum: int, frame: object) -> None:
    raise _TimeoutError("the cell ran too long")
