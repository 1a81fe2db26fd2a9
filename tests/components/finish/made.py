"""Manifests of a run, for tests of its end."""

from __future__ import annotations

from typing import Any

from components.runtime.checkpoints.manifest import Manifest
from tests.published import manifest_of


def manifest(step: str, complete: bool = True, second: int = 0, git_commit: str = "", **extra: Any) -> Manifest:
    """What a step of the run r has published, in that second of a minute."""
    created = f"2026-01-01T00:00:{second:02d}+00:00"
    return manifest_of(step, complete=complete, git_commit=git_commit, created_at=created, extra=extra)
