"""What the pipeline's run in MLflow shows, read from the manifests of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from components.ablation import ablations
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.steps import TRAINING_STEPS, config_class, step_of
from components.runtime.tracking.mlflow_runs import COMMIT_TAG, Dataset, Outcome

DATA = "prepare_data"
LEARNING = (*TRAINING_STEPS, "fusion_arm", "sft_arm", "toggle_arm", "rl_arm", "swarm_start", "swarm_arm")


def outcome(found: Mapping[str, Manifest], summary: Mapping[str, Any], profile: str, error: str) -> Outcome:
    """Figures, parameters, data and commit of a pipeline.

    Args:
        found: task name -> the newest manifest that it published.
        summary: the result of ``components.finish.stage.summarise``.
        profile: the profile's name, "" if it is not known.
        error: why the run ended early; "" if it did not. A run that ended early ends now, any other when its last step
            did.
    """
    done = {name: manifest for name, manifest in found.items() if manifest.complete}
    evaluation, promoted = done.get("evaluate"), summary["promoted"]
    decision = str(evaluation.extra.get("decision", "")) if evaluation else ""
    tags = {
        "moonflow.profile": profile,
        "moonflow.decision": decision,
        "moonflow.version": str(promoted["version"]) if promoted else "",
        "moonflow.error": error,
        COMMIT_TAG: next((m.git_commit for m in reversed(list(found.values())) if m.git_commit), ""),
    }
    data = done.get(DATA)
    return Outcome(
        metrics={**_speed(done, summary), **_scores(summary, evaluation), **_ablation(summary)},
        params=_parameters(found),
        tags={name: value for name, value in tags.items() if value},
        dataset=Dataset(f"{data.run_id}/{data.step}", data.content_sha256, data.uri) if data else None,
        note=str(evaluation.extra.get("markdown", "")) if evaluation else "",
        ended=None if error or not done else max(map(_made, done.values())),
    )


def _speed(done: Mapping[str, Manifest], summary: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the run and of each step; tokens per second of all training steps together, and of each."""
    figures = {"seconds": float(summary["seconds"])}
    figures |= {f"seconds/{step['name']}": float(step["seconds"]) for step in summary["steps"]}
    trained = {task: m.extra for task, m in done.items() if step_of(task) in LEARNING}
    seconds = sum(extra.get("seconds", 0.0) for extra in trained.values())
    if seconds:
        figures["tokens"] = float(sum(extra.get("tokens", 0) for extra in trained.values()))
        figures["tokens/s"] = round(figures["tokens"] / seconds, 1)
    return figures | {f"tokens/s/{task}": extra.get("tokens_per_s", 0.0) for task, extra in trained.items()}


def _scores(summary: Mapping[str, Any], evaluation: Manifest | None) -> dict[str, float]:
    """The candidate's held-out scores, named as in the step that measured them."""
    if evaluation is None:
        return {}
    rows = [row for row in summary["evals"] if row["step"] == evaluation.extra.get("candidate")]
    return {f"eval/{row['suite']}/{row['ability']}/{row['modality']}": float(row["value"]) for row in rows}


def _ablation(summary: Mapping[str, Any]) -> dict[str, float]:
    found = summary.get("ablation")
    return ablations.of(found).metrics(found) if found else {}


def _parameters(found: Mapping[str, Manifest]) -> dict[str, str]:
    """``step.name`` of what is not the schema's default, as the steps ran with it; ``preset`` once for all."""
    values: dict[str, str] = {}
    for task, manifest in found.items():
        config = manifest.extra.get("config", {})
        step = step_of(task)
        schema = config_class(step)
        for name in set(config) & set(schema.model_fields) - set(schema.looped):
            if name == "preset":
                values[name] = str(config[name])
            elif config[name] != schema.model_fields[name].default:
                values[f"{step}.{name}"] = str(config[name])
    return dict(sorted(values.items()))


def _made(manifest: Manifest) -> float:
    return datetime.fromisoformat(manifest.created_at).timestamp()
