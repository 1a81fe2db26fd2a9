"""What an API server with Trainer and JobSet has against a TrainJob: its schema, and rules that no schema can say."""

from __future__ import annotations

import re

import pytest
from kubernetes.utils.quantity import parse_quantity

from tests.manifests import schemas
from tests.manifests.overlays import Json, named
from tests.manifests.policy import pod_templates


def merged_resources(body: Json, runtime: Json) -> Json:
    """The resources of the container ``node`` as Trainer 2.3 makes them: the TrainJob's over the runtime's, entry by
    entry. (Trainer 2.2 put the TrainJob's in their place.)"""
    ((_, template),) = pod_templates(runtime)
    (container,) = template["spec"]["containers"]
    ours, given = container.get("resources", {}), body["spec"]["trainer"]["resourcesPerNode"]
    return {part: {**ours.get(part, {}), **given.get(part, {})} for part in ("requests", "limits")}


def refused_resources(resources: Json) -> list[str]:
    """What an API server has against a container's requests and limits, in its words."""
    found = []
    for name, limit in resources["limits"].items():
        asked = resources["requests"].get(name, limit)
        if parse_quantity(asked) > parse_quantity(limit):
            found.append(f'Invalid value: "{asked}": must be less than or equal to {name} limit of {limit}')
        elif "/" in name and parse_quantity(asked) != parse_quantity(limit):
            found.append(f'Invalid value: "{asked}": must be equal to {name} limit of {limit}')
    return found + [
        f"{name}: Required value: Limit must be set for non overcommitable resources"
        for name in resources["requests"]
        if "/" in name and name not in resources["limits"]
    ]


def goes_on(runtime: Json, exit_code: int, restarts: int) -> bool:
    """Whether JobSet starts the pods anew after one ended with ``exit_code``, having done so ``restarts`` times."""
    spec = runtime["spec"]["template"]["spec"]
    (job,) = spec["replicatedJobs"]
    assert job["template"]["spec"]["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["template"]["spec"].get("podFailurePolicy", {}).get("rules", []):
        asked = rule["onExitCodes"]
        if asked["operator"] == "In" and exit_code in asked["values"] and rule["action"] == "FailJob":
            reason = "PodFailurePolicy"
    for rule in spec["failurePolicy"].get("rules", []):
        if reason in rule["onJobFailureReasons"]:
            return bool(rule["action"] != "FailJobSet")
    return bool(restarts < spec["failurePolicy"]["maxRestarts"])


def validate_train_job(body: Json, runtime: Json | None = None) -> None:
    """AssertionError for what would be refused; ``runtime`` is the one that the job names, ours by default."""
    if not schemas.FOLDER.is_dir():
        pytest.skip(f"no CustomResourceDefinitions at {schemas.FOLDER}")
    found = schemas.problems(body)
    assert not found, found
    reference = body["spec"]["runtimeRef"]
    runtime = runtime or named("dev/platform", reference["kind"], reference["name"])
    refused = refused_resources(merged_resources(body, runtime))
    assert not refused, refused
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
