"""Promotion: what passed the gate is committed to the GitOps repository and named in the model registry."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from components.promote import gitops, registry
from components.promote.config import Config
from components.runtime import manifest as manifests
from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from model.errors import MoonflowError


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Only a candidate that the gate let through.
    checkpoint = manifests.read(context.store, inputs["checkpoint"])
    evals = manifests.read(context.store, inputs["evals"])
    if evals.extra.get("decision") != "promote":
        reasons = "; ".join(map(str, evals.extra.get("reasons", []))) or "it has no decision"
        raise MoonflowError(f"the evaluation {evals.uri} does not allow a promotion: {reasons}")
    if checkpoint.sha256 not in evals.parents:
        raise MoonflowError(f"the evaluation {evals.uri} did not measure {checkpoint.uri}; evaluate that checkpoint")

    # 2. The commit is the promotion; everything else refers to it.
    repository = os.environ.get("MOONFLOW_GITOPS_REPO", "")
    if not repository:
        raise MoonflowError("MOONFLOW_GITOPS_REPO is not set: give the path or URL of the GitOps repository")
    message = commit_message(config.environment, checkpoint, evals)
    promoted = gitops.commit_promotion(repository, config.environment, checkpoint.uri, checkpoint.sha256, message)

    # 3. The registry, where people look.
    tags = {"manifest_sha256": checkpoint.sha256, "commit": promoted.commit, "run_id": context.run_id}
    version = registry.register(
        config.model_name, config.alias, checkpoint.uri, tags, run_id=checkpoint.mlflow_run_id or None
    )

    # 4. A record of both.
    record = {"version": version, "manifest_sha256": checkpoint.sha256, "commit": promoted.commit}
    (context.work / "promotion.json").write_text(json.dumps({"uri": checkpoint.uri, **record}, indent=2) + "\n")
    return context.publish(context.work, kind="promotion", complete=True, extra=record)


def commit_message(environment: str, checkpoint: Manifest, evals: Manifest) -> str:
    """Subject, what is promoted, and the candidate's scores beside the untrained model's."""
    lines = [
        f"Promote {checkpoint.run_id}/{checkpoint.step}/{checkpoint.index} to {environment}",
        "",
        f"Checkpoint: {checkpoint.uri}",
        f"Manifest sha256: {checkpoint.sha256}",
        f"Evaluation: {evals.uri}",
        "",
        *_table(evals.extra.get("evals", []), checkpoint.step),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], step: str) -> list[str]:
    before = {row["suite"]: row["value"] for row in rows if row["step"] == "init"}
    lines = [f"{'suite':<22}{'untrained':>10}{'value':>8}{'stderr':>8}{'n':>6}"]
    for row in rows:
        if row["step"] == step:
            first = f"{before[row['suite']]:.3f}" if row["suite"] in before else "-"
            lines.append(f"{row['suite']:<22}{first:>10}{row['value']:>8.3f}{row['stderr']:>8.3f}{row['n']:>6}")
    return lines
