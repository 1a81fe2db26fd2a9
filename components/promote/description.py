"""What MLflow's registry says about a promoted version, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.release.git import one_line
from components.runtime.checkpoints.manifest import ORIGIN, Manifest
from components.runtime.steps import STARTS


def describe_version(checkpoint: Manifest, evals: Manifest, environment: str, commit: str) -> str:
    """Where it comes from, its held-out scores, and why the gate let it through.

    Args:
        checkpoint: what was exported.
        evals: the evaluation that allowed it.
        commit: of the GitOps repository.
    """
    return "\n".join(
        [
            f"Promoted to {environment} by Git commit `{commit}`.",
            "",
            f"- run `{checkpoint.run_id}`, step `{checkpoint.step}`, checkpoint `{checkpoint.uri}`",
            f"- trained by moonflow at Git commit `{checkpoint.git_commit or 'unknown'}`",
            *([f"- started from {origin}"] if (origin := origin_line(checkpoint)) else []),
            f"- evaluation `{evals.uri}`",
            "",
            *_scores(evals.extra.get("evals", []), checkpoint.step),
            "",
            "Gate:",
            "",
            str(evals.extra.get("markdown", "")),
        ]
    )


def origin_line(checkpoint: Manifest) -> str:
    """The imported checkpoint that training started from, in one line; "" if there was none."""
    origin = checkpoint.extra.get(ORIGIN, {})
    if not origin:
        return ""
    # Part by part, so that a long address does not cut the licence off.
    revision = f" at {one_line(origin['revision'])}" if origin.get("revision") else ""
    licence = one_line(", ".join(origin.get("licences", ()))) or "none found"
    return f"{one_line(origin['source'])}{revision}, sha256 {one_line(origin['sha256'])}, licence: {licence}"


def before_training(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, float]]:
    """What the model was that training started from, untrained or imported, and its score by suite."""
    found = next((row["step"] for row in rows if row["step"] in STARTS), next(iter(STARTS)))
    return STARTS[found], {row["suite"]: row["value"] for row in rows if row["step"] == found}


def _scores(rows: Sequence[Mapping[str, Any]], step: str) -> list[str]:
    start, before = before_training(rows)
    lines = [f"| suite | ability | modality | {start} | score | standard error | tasks |", f"|{'---|' * 7}"]
    for row in (row for row in rows if row["step"] == step):
        first = f"{before[row['suite']]:.3f}" if row["suite"] in before else ""
        cells = (row["suite"], row["ability"], row["modality"], first, f"{row['value']:.3f}", f"{row['stderr']:.3f}")
        lines.append(f"| {' | '.join(cells)} | {row['n']} |")
    return lines
