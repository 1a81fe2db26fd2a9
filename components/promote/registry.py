"""The MLflow model registry: one version per promoted checkpoint, and an alias on the one in service."""

from __future__ import annotations

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from model.errors import MoonflowError


def register(name: str, alias: str, uri: str, tags: dict[str, str], run_id: str | None = None) -> str:
    """Register a checkpoint and point the alias at it; the same ``manifest_sha256`` again yields the same version.

    Args:
        name: of the registered model.
        alias: e.g. ``champion``.
        uri: the checkpoint's prefix in the object store: the version's source.
        tags: must hold ``manifest_sha256``, the checkpoint's identity.
        run_id: the MLflow run that made it, if known.

    Returns:
        The version's number, as text.

    Raises:
        MoonflowError: MLflow is away or refuses.
    """
    client = MlflowClient()
    try:
        version = _find(client, name, tags["manifest_sha256"])
        if version is None:
            _ensure_model(client, name)
            version = client.create_model_version(name, source=uri, run_id=run_id, tags=tags).version
        if client.get_registered_model(name).aliases.get(alias) != str(version):
            client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise MoonflowError(f"registering {name} at {mlflow.get_tracking_uri()} failed: {reason}") from error
    return str(version)


def _find(client: MlflowClient, name: str, manifest_sha256: str) -> str | None:
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get("manifest_sha256") == manifest_sha256:
            return str(version.version)
    return None


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Checkpoints that passed the evaluation gate.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
