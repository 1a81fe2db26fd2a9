"""What an API server with Trainer and JobSet has against a TrainJob: its schema, and rules that no schema can say."""

from __future__ import annotations

import re

import pytest

from tests.manifests import schemas
from tests.manifests.overlays import Json


def validate_train_job(body: Json) -> None:
    """AssertionError for what would be refused."""
    if not schemas.FOLDER.is_dir():
        pytest.skip(f"no CustomResourceDefinitions at {schemas.FOLDER}")
    found = schemas.problems(body)
    assert not found, found
    # The CEL rules and the admission webhooks of Trainer 2.2 that concern what the launcher writes.
    name = body["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
    assert len(f"{name}-node-0-9999-abcde") <= 63, "JobSet refuses a job whose pods' names could be too long"
    for patch in body["spec"]["runtimePatches"]:
        assert re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", patch["manager"]), "a domain-prefixed path is asked for"
        for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            for container in job["template"]["spec"]["template"]["spec"].get("containers", []):
                assert "env" not in container, "the trainer's container takes env from spec.trainer only"
    reserved = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
    assert not reserved & {row["name"] for row in body["spec"]["trainer"]["env"]}
    for value in body["metadata"]["labels"].values():
        assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", value) and len(value) <= 63, value
