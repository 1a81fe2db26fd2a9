from __future__ import annotations

from typing import Any

from components.finish.outcome import outcome
from components.finish.stage import summarise
from components.joint_pretrain.config import Config as JointConfig
from components.runtime.checkpoints.manifest import File
from components.vit_pretrain.config import Config as VitConfig
from tests.components.eval_rows import eval_row
from tests.components.finish.made import manifest


def config_of(**changes: Any) -> dict[str, Any]:
    return JointConfig(**changes).model_dump()


SCORES = (("init", "photo", 0.0), ("joint_pretrain", "photo", 0.3), ("parl", "photo", 0.75))
FOUND = {
    "prepare_data": manifest("prepare_data", second=1, seconds=10.0),
    "vit_pretrain": manifest("vit_pretrain", second=2, config=VitConfig(preset="tiny").model_dump()),
    "joint_pretrain": manifest(
        "joint_pretrain", second=20, git_commit="old", seconds=4.0, tokens=800, tokens_per_s=200.0,
        config=config_of(steps=7),
    ),
    "parl": manifest("parl", second=30, git_commit="new", seconds=6.0, tokens=200, tokens_per_s=33.3),
    "evaluate": manifest(
        "evaluate", second=40, seconds=5.0, tokens_per_s=1.0, candidate="parl", decision="promote",
        markdown="**promote**", evals=[eval_row(*score, 0.1, n=4) for score in SCORES],
    ),
}  # fmt: skip


def test_scores_are_the_candidate_s_and_speed_is_of_training_alone() -> None:
    metrics = outcome(FOUND, summarise(FOUND), "tiny", "").metrics
    assert metrics["eval/photo/knowledge/image"] == 0.75
    assert metrics["tokens"] == 1000 and metrics["tokens/s"] == 100.0
    assert metrics["seconds/evaluate"] == 5.0 and metrics["tokens/s/joint_pretrain"] == 200.0
    assert "tokens/s/evaluate" not in metrics and metrics["seconds"] == 25.0


def test_parameters_are_those_that_differ_from_the_defaults() -> None:
    assert outcome(FOUND, summarise(FOUND), "tiny", "").params == {"joint_pretrain.steps": "7", "preset": "tiny"}


def test_data_commit_decision_and_end_come_from_the_manifests() -> None:
    seen = outcome(FOUND, summarise(FOUND), "tiny", "")
    assert seen.dataset is not None
    assert (seen.dataset.name, seen.dataset.uri) == ("r/prepare_data", "s3://b/r/prepare_data/0")
    assert seen.tags == {
        "moonflow.profile": "tiny",
        "moonflow.decision": "promote",
        "mlflow.source.git.commit": "new",
    }
    assert seen.note == "**promote**"
    assert seen.ended == 1767225640.0, "2026-01-01T00:00:40Z, when the last step published"


def test_the_data_s_digest_is_of_its_content_alone() -> None:
    def digest(second: int, history: str, shard: str) -> str:
        files = {"metrics.jsonl": history * 64, "train/x.tar": shard * 64}
        listed = tuple(File(name=name, size=1, sha256=sha) for name, sha in files.items())
        found = {"prepare_data": manifest("prepare_data", second=second).model_copy(update={"files": listed})}
        seen = outcome(found, summarise(found), "", "").dataset
        assert seen is not None
        return seen.digest

    assert digest(1, "a", "c") == digest(2, "b", "c") != digest(1, "a", "d")


def test_a_run_that_failed_has_no_scores_says_why_and_ends_now() -> None:
    found = {"joint_pretrain": manifest("joint_pretrain", complete=False, config=config_of(steps=7))}
    seen = outcome(found, summarise(found), "", "joint_pretrain: out of disk")
    assert seen.ended is None and seen.dataset is None
    assert seen.tags == {"moonflow.error": "joint_pretrain: out of disk"}
    assert seen.params == {"joint_pretrain.steps": "7"}
    assert not any(name.startswith(("eval/", "tokens")) for name in seen.metrics)


def test_arms_of_an_ablation_compare_by_their_means() -> None:
    arm = manifest("fusion_arm-early-0", second=9, seconds=2.0, tokens=50, tokens_per_s=25.0, config={"arm": "early"})
    cell = {"score": {"mean": 40.0, "sd": None, "n": 1}, "loss": {"mean": 1.5, "sd": None, "n": 1}, "paper": 45.5}
    found = {"fusion_arm-early-0": arm}
    compared = {"name": "fusion", "no_result": [], "arms": {"early": {"columns": {"text knowledge": cell}}}}
    summary = {**summarise(found), "ablation": compared}
    metrics = outcome(found, summary, "fusion", "").metrics
    assert metrics["score/early/text knowledge"] == 40.0 and metrics["loss/early/text knowledge"] == 1.5
    assert metrics["tokens/s"] == 25.0 and metrics["tokens/s/fusion_arm-early-0"] == 25.0
