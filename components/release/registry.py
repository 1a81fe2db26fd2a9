"""The MLflow model registry: a version per promoted checkpoint; aliases on the newest and on the one in service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.runtime.tracking.mlflow_runs import shortened
from model.boundary.errors import MoonflowError, Transient

DIGEST = "manifest_sha256"
"""Tag: the digest of the exported checkpoint's manifest, a version's identity."""
LONGEST_DESCRIPTION = 5_000
"""Characters that MLflow's database has room for."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    tags: Mapping[str, str]

    @property
    def manifest_sha256(self) -> str:
        return self.tags.get(DIGEST, "")


def register(name: str, alias: str, uri: str, tags: Mapping[str, str], run_id: str | None = None) -> str:
    """Register a checkpoint and point the alias at it; the same ``manifest_sha256`` again yields the same version.

    Args:
        name: of the registered model.
        alias: e.g. ``candidate``.
        uri: the checkpoint's prefix in the object store: the version's source.
        tags: must hold ``manifest_sha256``, the checkpoint's identity.
        run_id: the MLflow run that made it, if known.

    Returns:
        The version's number, as text.

    Raises:
        MoonflowError: MLflow is away or refuses.
    """
    client = _client()
    with _explained(f"registering {name}"):
        number = _oldest(client, name, tags[DIGEST])
        if number is None:
            _ensure_model(client, name)
            made = str(client.create_model_version(name, source=uri, run_id=run_id, tags=dict(tags)).version)
            # Two may register the same checkpoint at once. Numbers follow the order of creation, so both see the older.
            number = _oldest(client, name, tags[DIGEST]) or made
            if number != made:
                client.delete_model_version(name, made)
        _point(client, name, alias, number)
    return number


def describe(name: str, number: str, tags: Mapping[str, str], text: str | None = None) -> None:
    """Add tags to a version and, if given, a description in Markdown; MoonflowError when MLflow is away or refuses."""
    client = _client()
    with _explained(f"describing version {number} of {name}"):
        if text is not None:
            client.update_model_version(name, number, shortened(text, LONGEST_DESCRIPTION))
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)


def aliased(name: str, alias: str) -> Version | None:
    """The version that an alias points at, None if there is no such model or alias yet."""
    client = _client()
    with _explained(f"reading {name}@{alias}"):
        try:
            number = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if number is None:
            return None
        found = client.get_model_version(name, number)
    return Version(name, str(found.version), dict(found.tags))


def find(manifest_sha256: str) -> Version | None:
    """The version of a promoted checkpoint under whatever name; None if it was never registered."""
    with _explained("searching the registry"):
        rows = _client().search_model_versions(f"tags.{DIGEST} = '{manifest_sha256}'")
    versions = [Version(row.name, str(row.version), dict(row.tags)) for row in rows]
    return min(versions, key=lambda version: int(version.number), default=None)


def point(name: str, alias: str, number: str | None) -> None:
    """Point an alias at a version, or remove it with None; MoonflowError when MLflow is away or refuses."""
    client = _client()
    with _explained(f"moving {name}@{alias}"):
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            _point(client, name, alias, number)


def _client() -> MlflowClient:
    if not mlflow.is_tracking_uri_set():  # MLflow would make a registry in the working directory
        raise MoonflowError("MLFLOW_TRACKING_URI is not set: give MLflow's address, where the model registry is")
    return MlflowClient()


def _point(client: MlflowClient, name: str, alias: str, number: str) -> None:
    if client.get_registered_model(name).aliases.get(alias) != number:
        client.set_registered_model_alias(name, alias, number)


def _oldest(client: MlflowClient, name: str, manifest_sha256: str) -> str | None:
    rows = client.search_model_versions(f"name = '{name}' and tags.{DIGEST} = '{manifest_sha256}'")
    return min((str(row.version) for row in rows), key=int, default=None)


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Checkpoints that passed the evaluation gate.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what MLflow raises into one line."""
    try:
        yield
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        # MLflow's client reports an unreachable server as an error 500.
        kind = Transient if error.get_http_status_code() >= 500 else MoonflowError
        raise kind(f"{doing} at {mlflow.get_tracking_uri()} failed: {reason}") from error
