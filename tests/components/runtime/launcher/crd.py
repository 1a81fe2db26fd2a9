"""The CRD schemas as strict JSON schemas: what a structural schema forbids is forbidden here too."""

from __future__ import annotations

import gzip
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CRDS = Path(__file__).parents[5] / "shared" / "crds"
Json = dict[str, Any]


def validate_train_job(body: Json) -> None:
    """jsonschema.ValidationError, or AssertionError for the rules that a schema cannot say."""
    jsonschema.Draft202012Validator(_strict_schema("trainer.kubeflow.org_trainjobs")).validate(body)
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


def skip_without_crds() -> None:
    if not CRDS.is_dir():
        pytest.skip(f"the CRD schemas are not at {CRDS}")


@cache
def _strict_schema(name: str) -> Json:
    skip_without_crds()
    crd = yaml.load(gzip.decompress((CRDS / f"{name}.yaml.gz").read_bytes()), yaml.CSafeLoader)
    schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    _forbid_unknown(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _forbid_unknown(schema: Json) -> None:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if "properties" in schema:
        schema["additionalProperties"] = False
        for inner in schema["properties"].values():
            _forbid_unknown(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _forbid_unknown(schema[key])
