"""Write the generated READMEs: ``python -m pipelines.docs`` (``--check`` only compares)."""

from __future__ import annotations

import sys
from pathlib import Path

from components.runtime.steps import ALL_STEPS
from model.boundary.errors import MoonflowError
from pipelines.docs import commands, component

ROOT = component.COMPONENTS.parent


def pages() -> dict[Path, str]:
    """Every generated file and its text."""
    found = {component.COMPONENTS / step / "README.md": component.render(step) for step in ALL_STEPS}
    return found | {ROOT / "pipelines" / "README.md": commands.render()}


def stale() -> list[Path]:
    """The files that differ from what the code says."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]


def main() -> None:
    if not component.COMPONENTS.is_dir():
        raise MoonflowError(f"{component.COMPONENTS} does not exist; run this in a source checkout")
    if "--check" in sys.argv[1:]:
        if found := stale():
            names = ", ".join(str(path.relative_to(ROOT)) for path in found)
            raise SystemExit(f"out of date: {names}; run python -m pipelines.docs")
        return
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
