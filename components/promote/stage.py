"""Promotion: a checkpoint that passed the gate is exported, signed, registered and committed to the GitOps repository.

Every part finds what an earlier attempt made: a repeated promotion has the same export, version, commit and pull
request. The alias ``champion`` moves later, when the committed checkpoint has answered the serve step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from components.promote.config import Config
from components.promote.description import before_training, describe_version, origin_line
from components.promote.export import export
from components.release import gitops, overlay, registry, signing
from components.release.champion import repository_from_env
from components.release.forge import Forge
from components.release.gitops import Proposal
from components.release.overlay import Change
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.runtime.tracking.mlflow_runs import mlflow_link
from model.boundary.errors import MoonflowError

CANDIDATE = "candidate"
"""Registry alias of the version promoted last, whether it serves yet or not."""


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Only a candidate that the gate let through, and only if nothing needed is missing.
    checkpoint = manifests.read(context.store, inputs["checkpoint"])
    evals = manifests.read(context.store, inputs["evals"])
    if evals.extra.get("decision") != "promote":
        reasons = "; ".join(map(str, evals.extra.get("reasons", []))) or "it has no decision"
        raise MoonflowError(f"the evaluation {evals.uri} does not allow a promotion: {reasons}")
    if checkpoint.sha256 not in evals.parents:
        raise MoonflowError(f"the evaluation {evals.uri} did not measure {checkpoint.uri}; evaluate that checkpoint")
    if (measured := evals.extra.get("expert_precision", "full")) != config.expert_precision:
        raise MoonflowError(
            f"the evaluation {evals.uri} measured {measured} experts, but promote.expert_precision is "
            f"{config.expert_precision}: give evaluate.expert_precision the same value"
        )
    overlay.check_name(config.environment)
    repository = repository_from_env()
    forge = Forge.from_env(repository)
    if (key := signing.given_key(signing.KEY)) is None:
        raise MoonflowError(
            f"no key to sign with: mount {signing.MOUNTED[signing.KEY]} or give a private key's path in {signing.KEY}"
        )

    # 2. Export and sign: the files that serve, without what only training needs.
    exported = export(context.store, checkpoint, context.work / "export", key, config.expert_precision)

    # 3. Register, where people look for models.
    promotion_id = f"{config.environment}/{context.run_id}/{exported.sha256}"
    tags = {
        "manifest_sha256": exported.sha256,
        "run_id": context.run_id,
        "checkpoint": checkpoint.uri,
        "evaluation": evals.uri,
        "evaluation_sha256": evals.sha256,
    }
    made_by = checkpoint.mlflow_run_id or None
    version = registry.register(config.model_name, CANDIDATE, exported.uri, tags, run_id=made_by)

    # 4. Commit, and with a forge ask for a review: that commit is the promotion.
    change = Change(
        exported.uri,
        exported.sha256,
        kfp_run_id=os.environ.get("KFP_RUN_ID", ""),
        mlflow_run_id=checkpoint.mlflow_run_id,
        image_digest=config.image_digest,
    )
    message = commit_message(config, change, version, checkpoint, evals)
    review = forge is not None
    proposal = gitops.promote(repository, config.environment, change, message, promotion_id, review=review)
    request = _pull_request(forge, proposal, message, promotion_id)
    text = describe_version(checkpoint, evals, config.environment, proposal.commit)
    registry.describe(config.model_name, version, {"commit": proposal.commit, **request}, text)

    # 5. A record of all.
    record = {"version": version, "manifest_sha256": exported.sha256, "commit": proposal.commit}
    record |= {"model_name": config.model_name, "uri": exported.uri, "promotion_id": promotion_id}
    record |= {"branch": proposal.branch, **request}
    folder = context.work / "record"
    folder.mkdir()
    (folder / "promotion.json").write_text(json.dumps(record, indent=2) + "\n")
    return context.publish(folder, kind="promotion", complete=True, extra=record)


def _pull_request(forge: Forge | None, proposal: Proposal, message: str, promotion_id: str) -> dict[str, str]:
    if forge is None or not proposal.branch:  # no forge, or merged already
        return {}
    title, _, text = message.partition("\n")
    # With the trailer, so that a squashed merge is still known as this promotion.
    body = f"```\n{text.strip()}\n```\n\n{gitops.TRAILER}: {promotion_id}\n"
    return {"pull_request": forge.ensure(proposal.branch, proposal.commit, title, body).url}


def commit_message(config: Config, change: Change, version: str, checkpoint: Manifest, evals: Manifest) -> str:
    """Subject, what is promoted, and the candidate's scores next to those of the model that training started from."""
    lines = [
        f"Promote {checkpoint.run_id}/{checkpoint.step}/{checkpoint.index} to {config.environment}",
        "",
        f"Checkpoint: {change.uri}",
        f"Manifest sha256: {change.manifest_sha256}",
        f"Exported from: {checkpoint.uri}",
        *([f"Started from: {origin}"] if (origin := origin_line(checkpoint)) else []),
        f"Model version: {config.model_name} {version}",
        f"Evaluation: {evals.uri}",
        f"Kubeflow run: {change.kfp_run_id or 'none'}",
        f"MLflow run: {mlflow_link(change.mlflow_run_id) or change.mlflow_run_id or 'none'}",
        f"Serving image: {change.image_digest or 'as before'}",
        "",
        *_table(evals.extra.get("evals", []), checkpoint.step),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], step: str) -> list[str]:
    start, before = before_training(rows)
    lines = [f"{'suite':<22}{start:>10}{'value':>8}{'stderr':>8}{'n':>6}"]
    for row in rows:
        if row["step"] == step:
            first = f"{before[row['suite']]:.3f}" if row["suite"] in before else "-"
            lines.append(f"{row['suite']:<22}{first:>10}{row['value']:>8.3f}{row['stderr']:>8.3f}{row['n']:>6}")
    return lines
