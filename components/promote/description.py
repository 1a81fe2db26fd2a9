"""What MLflow's registry says about a promoted version, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.runtime.manifest import Manifest

UNTRAINED = "init"


def describe_version(checkpoint: Manifest, evals: Manifest, environment: str, commit: str) -> str:
    """Where it comes from, its held-out scores, and why the gate let it through.

    Args:
        checkpoint: what was exported.   evals: the evaluation that allowed it.
        commit: of the GitOps repository.
    """
    return "\n".join(
        [
            f"Promoted to {environment} by Git commit `{commit}`.",
            "",
            f"- run `{checkpoint.run_id}`, step `{checkpoint.step}`, checkpoint `{checkpoint.uri}`",
            f"- trained by moonflow at Git commit `{checkpoint.git_commit or 'unknown'}`",
            f"- evaluation `{evals.uri}`",
            "",
            *_scores(evals.extra.get("evals", []), checkpoint.step),
            "",
            "Gate:",
            "",
            str(evals.extra.get("markdown", "")),
        ]
    )


def _scores(rows: Sequence[Mapping[str, Any]], step: str) -> list[str]:
    before = {row["suite"]: row["value"] for row in rows if row["step"] == UNTRAINED}
    lines = ["| suite | ability | modality | untrained | score | standard error | tasks |", f"|{'---|' * 7}"]
    for row in (row for row in rows if row["step"] == step):
        first = f"{before[row['suite']]:.3f}" if row["suite"] in before else ""
        cells = (row["suite"], row["ability"], row["modality"], first, f"{row['value']:.3f}", f"{row['stderr']:.3f}")
        lines.append(f"| {' | '.join(cells)} | {row['n']} |")
    return lines
