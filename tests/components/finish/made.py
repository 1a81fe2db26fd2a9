"""Manifests of a run, for tests of its end."""

from __future__ import annotations

from typing import Any

from components.runtime.manifest import Manifest


def manifest(step: str, complete: bool = True, second: int = 0, git_commit: str = "", **extra: Any) -> Manifest:
    """What a step of the run r has published, in that second of a minute."""
    return Manifest(
        uri=f"s3://b/r/{step}/0",
        run_id="r",
        step=step,
        index=0,
        kind="checkpoint",
        files=(),
        complete=complete,
        git_commit=git_commit,
        created_at=f"2026-01-01T00:00:{second:02d}+00:00",
        extra=extra,
    )
