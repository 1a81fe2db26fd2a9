"""What ``--help`` of a benchmark says: all of its docstring, which tells how long it takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SCRIPTS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_says_how_long_a_script_takes(script: Path) -> None:
    text = script.read_text()
    told = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    assert re.search(r"\b[Ee]xpect [^.]*\bminutes?\b", told), "its docstring says no duration"
    assert "description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter" in text
