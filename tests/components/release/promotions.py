"""Promotions as the promote step makes them, in short."""

from __future__ import annotations

from pathlib import Path

from components.release import gitops, registry
from components.release.gitops import Proposal
from components.release.overlay import Change


def promote(
    repository: Path | str, digest: str, environment: str = "local", run: str = "tiny", *,
    message: str = "Promote\n", review: bool = False,
) -> Proposal:  # fmt: skip
    """Promote the checkpoint with this digest, which a run has made, to an environment."""
    change = Change(f"s3://moonflow/{digest[:4]}", digest, kfp_run_id="kfp-1", mlflow_run_id="mlflow-1")
    return gitops.promote(str(repository), environment, change, message, f"{environment}/{run}/{digest}", review=review)


def champion_version(model: str = "moonflow") -> str:
    """The number of the version that is champion; "" if none is."""
    found = registry.aliased(model, "champion")
    return found.number if found else ""
