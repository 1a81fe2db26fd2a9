"""The object store that the environment names: an S3 server or a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from components.runtime.store.address import CALLERS, FILE, S3
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError

_KEPT = f"{CALLERS}AWS_ENDPOINT_URL_S3"


def open_store(environment: Mapping[str, str] | None = None) -> ObjectStore:
    """The store named by MOONFLOW_STORE and, for S3, AWS_ENDPOINT_URL_S3, AWS_REGION and AWS's other variables.

    A given ``environment`` must hold the credentials as well; os.environ may leave them to boto3's chain.

    Raises:
        MoonflowError: a variable that is missing or wrong, by its name.
    """
    env = os.environ if environment is None else environment
    base = env.get("MOONFLOW_STORE", "")
    if not base:
        raise MoonflowError(
            "MOONFLOW_STORE is not set: give s3://bucket/prefix or file:///folder, or start with `moonflow run`"
        )
    # Each kind is imported when it is needed: a machine that keeps its objects in a folder needs no boto3.
    if base.startswith(FILE):
        from components.runtime.store.folder_store import FolderStore

        return FolderStore(base)
    from components.runtime.store.s3 import S3Store

    return S3Store.configured(base, env, whole=environment is not None)


def for_sources(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that keep a caller's AWS_* next to those of a run's own store; ``open_source`` reads them."""
    kept = {f"{CALLERS}{name}": value for name, value in environment.items() if name.startswith("AWS_")}
    return {_KEPT: "", **kept}  # always there, also if the caller's settings are all in ~/.aws


def open_source(bucket: str) -> ObjectStore:
    """A bucket that data or a checkpoint is read from: with the settings of the run's store if it is that one's, else
    with those that ``for_sources`` kept, if it kept any. Raises what ``open_store`` raises."""
    from components.runtime.store.s3 import S3Store

    base = f"{S3}{bucket}"
    if _KEPT not in os.environ or f"{os.environ.get('MOONFLOW_STORE', '')}/".startswith(f"{base}/"):
        return open_store({**os.environ, "MOONFLOW_STORE": base})
    theirs = {name.removeprefix(CALLERS): value for name, value in os.environ.items() if name.startswith(CALLERS)}
    return S3Store.configured(base, theirs, whole=True, apart=True)
