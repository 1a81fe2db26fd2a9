"""What the tests' API servers of Kubernetes have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    """The object that tells a failure."""
    about = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**about, "message": message, "reason": reason, "code": code}


def write_kubeconfig(folder: Path, address: str, token: str, namespace: str = "default") -> Path:
    path = folder / "kubeconfig"
    context = {"cluster": "fake", "user": "step", "namespace": namespace}
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": address}}],
        "users": [{"name": "step", "user": {"token": token}}],
        "contexts": [{"name": "fake", "context": context}],
    }
    path.write_text(yaml.safe_dump(values))
    return path
