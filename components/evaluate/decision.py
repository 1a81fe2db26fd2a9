"""What the gate decided and why: ``decision.json`` for programs, a Markdown table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.evaluate.gate import Champion, Row, Verdict
from components.release import registry
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.store.object_store import NotInStore, ObjectStore
from model.boundary.errors import MoonflowError

DECISION, TABLE = "decision.json", "decision.md"
DATA_CONTENT = "data_content_sha256"
"""In an evaluation's extra: the digest of its data's content."""


def find_champion(store: ObjectStore, reference: str, data_content: str) -> tuple[Champion | None, dict[str, Any]]:
    """The model in service with the scores that let it through, and the record of it for the decision.

    Args:
        reference: ``MODEL@ALIAS`` in the MLflow registry; empty = compare with none.
        data_content: digest of this evaluation's data; ``same_tasks`` in the record says whether the champion was
            evaluated on the same data.

    Raises:
        MoonflowError: MLflow is away, or the champion's evaluation is gone or is not what was registered.
    """
    name, _, alias = reference.partition("@")
    version = registry.aliased(name, alias) if reference else None
    if version is None:
        return None, {}
    title = f"champion {version.name} {version.number}"
    way_out = 'or set evaluate.champion = "" to promote without a comparison'
    if not (where := version.tags.get("evaluation", "")):
        raise MoonflowError(f"{title} has no tag `evaluation` to compare with: move {reference}, {way_out}")
    try:
        evaluation = manifests.read(store, where)
    except NotInStore:
        raise MoonflowError(f"the evaluation {where} of {title} is gone: restore it, {way_out}") from None
    if evaluation.sha256 != version.tags.get("evaluation_sha256"):
        raise MoonflowError(f"the evaluation {where} of {title} is not what was registered: restore it, {way_out}")
    rows = [row for row in evaluation.extra["evals"] if row["step"] == evaluation.extra["candidate"]]
    record = {
        "model": version.name,
        "alias": alias,
        "version": version.number,
        "manifest_sha256": version.manifest_sha256,
        "evaluation": where,
        "same_tasks": evaluation.extra.get(DATA_CONTENT) == data_content,
    }
    return Champion(title, rows), record


def as_record(verdict: Verdict, candidate: Manifest, champion: dict[str, Any]) -> dict[str, Any]:
    """The decision with its evidence, in JSON's terms."""
    return {
        "decision": verdict.decision,
        "candidate": {"step": candidate.step, "uri": candidate.uri, "manifest_sha256": candidate.sha256},
        "champion": champion or None,
        "rules": [check.as_evidence() for check in verdict.checks],
    }


def as_table(record: dict[str, Any]) -> str:
    """The decision as Markdown; the rules that failed come first."""
    champion = record["champion"]
    against = f"champion {champion['model']} version {champion['version']}" if champion else "no champion yet"
    if champion and not champion["same_tasks"]:
        against += " (evaluated on other data)"
    lines = [f"**{record['decision']}** {record['candidate']['uri']}, compared with {against}", ""]
    lines += ["| rule | subject | observed | interval | bound | passed |", "|---|---|---|---|---|---|"]
    rules: Sequence[Row] = sorted(record["rules"], key=lambda rule: rule["passed"])
    for rule in rules:
        low, high = rule["interval"]
        cells = [rule["rule"], rule["subject"], f"{rule['observed']:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {rule['bound']:g} | {'yes' if rule['passed'] else '**no**'} |")
    return "\n".join(lines) + "\n"
