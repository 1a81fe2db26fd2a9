from __future__ import annotations

from pathlib import Path


def write_program(path: Path, lines: str) -> Path:
    """A shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{lines}")
    path.chmod(0o755)
    return path
