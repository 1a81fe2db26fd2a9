"""The environment without what the shell that started the tests has set for us."""

from __future__ import annotations

import os

OURS = ("AWS_", "KUBERNETES_", "MLFLOW_", "MOONFLOW_")


def bare_environment(**variables: str) -> dict[str, str]:
    """For a process: no setting of ours, but ``variables``."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | variables
