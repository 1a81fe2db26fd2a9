from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from components.ablation.sft.arms import cells as sft_cells
from components.finish.config import Config
from components.finish.stage import run, summarise, thin
from components.runtime.store.folder_store import FolderStore
from tests.components.ablation.fusion.test_fusion_comparison import result as fusion_result
from tests.components.ablation.sft.test_sft_comparison import result as sft_result
from tests.components.ablation.swarm.test_swarm_comparison import result as swarm_result
from tests.components.eval_rows import eval_row
from tests.components.finish.made import manifest
from tests.published import publish_output


def test_summary_of_a_run_that_was_promoted() -> None:
    row = eval_row("parl", "x", 1.0, 0.0, ability="reasoning", modality="text", n=4)
    found = {
        "parl": manifest("parl", seconds=2.5, tokens_per_s=10.0, config={"seed": 0}),
        "evaluate": manifest("evaluate", seconds=1.0, tokens_per_s=3.0, evals=[row], decision="promote"),
        "promote": manifest("promote", seconds=0.5, version="3", manifest_sha256="ab", commit="cd", other="left out"),
    }
    summary = summarise(found)
    assert summary["steps"] == [
        {"name": "parl", "seconds": 2.5, "tokens_per_s": 10.0},
        {"name": "evaluate", "seconds": 1.0, "tokens_per_s": 3.0},
        {"name": "promote", "seconds": 0.5, "tokens_per_s": 0.0},
    ]
    assert summary["seconds"] == 4.0
    assert summary["evals"] == [row]
    assert summary["promoted"] == {"version": "3", "manifest_sha256": "ab", "commit": "cd"}


def test_summary_of_a_run_that_failed_counts_no_unfinished_step() -> None:
    summary = summarise({"joint_pretrain": manifest("joint_pretrain", complete=False, seconds=9.0)})
    assert summary["steps"] == [] and summary["evals"] == [] and summary["promoted"] is None


def test_seconds_are_the_wall_clock_of_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_STARTED", "1000")
    monkeypatch.setattr("time.time", lambda: 1060.0)
    assert summarise({"parl": manifest("parl", seconds=2.5)})["seconds"] == 60.0


def test_a_promotion_of_an_earlier_decision_is_told_as_such(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path / 'store'}")

    def publish(step: str, index: int, **extra: Any) -> str:
        folder = tmp_path / f"{step}{index}"
        folder.mkdir()
        (folder / "output.json").write_text("{}")
        return publish_output(store, folder, "r", step, index, kind="evals", extra=extra).uri

    first = publish("evaluate", 0, evals=[], decision="promote")
    version = {"version": "3", "manifest_sha256": "ab", "commit": "cd"}
    promoted = publish("promote", 0, inputs={"evals": first}, **version)
    publish("serve", 0, inputs={"promotion": promoted})
    run(Config(), store, "r", tmp_path, "")
    assert json.loads((tmp_path / "summary.json").read_text())["promoted"] == version

    publish("evaluate", 1, evals=[], decision="hold")
    run(Config(), store, "r", tmp_path, "")
    summary, extra = (json.loads((tmp_path / name).read_text()) for name in ("summary.json", "events.json"))
    assert summary["promoted"] is None and [step["name"] for step in summary["steps"]] == ["evaluate"]
    (warning,) = extra["extra"]["warnings"]
    assert "version 3" in warning and "still promoted" in warning and "--rollback" in warning


def test_a_second_call_of_a_finished_run_changes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(f"file://{tmp_path}/store")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "weights").write_text("w")

    def seconds(step: str, ago: float) -> float:
        publish_output(store, tmp_path / "output", "r", step, extra={"seconds": 2.5})
        monkeypatch.setenv("MOONFLOW_STARTED", str(time.time() - ago))
        return run(Config(), store, "r", tmp_path, "").outcome.metrics["seconds"]

    first = seconds("joint_rl", 60.0)
    assert first >= 60.0 and seconds("joint_rl", 1.0) == first
    assert seconds("parl", 1.0) == 5.0, "of several calls, the sum of what they did"


def test_a_copied_run_is_told_of_from_the_copy(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "loss/total": 2.0}\n')
    publish_output(FolderStore(f"file://{tmp_path}/first"), tmp_path / "output", "r", "parl")
    (tmp_path / "first").rename(tmp_path / "copy")
    run(Config(), FolderStore(f"file://{tmp_path}/copy"), "r", tmp_path, "")
    assert json.loads((tmp_path / "events.json").read_text())["events"]["parl"][0]["loss/total"] == 2.0


@pytest.mark.parametrize("name", ["fusion", "sft", "swarm"])
def test_arms_are_compared_by_the_ablation_that_their_results_name(name: str, tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/store")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "results.json").write_text("{}")
    result = {"fusion": fusion_result("early", 0), "sft": sft_result("text", 0), "swarm": swarm_result()}[name]
    published = {"kind": "evals", "extra": {"ablation": {**result, "name": name}}}
    publish_output(store, tmp_path / "output", "r", f"{name}_arm-{result['arm']}-0", **published)
    written = run(Config(), store, "r", tmp_path, "").files
    assert json.loads(written["summary.json"])["ablation"]["name"] == name
    shown = {"fusion": "when should images come", "sft": "tools on images", "swarm": "make of a swarm"}
    assert shown[name] in written["report.html"]
    assert {"fusion": "| early, ours |", "sft": "| crop | 3 |", "swarm": "| swarm | 16 |"}[name] in written["table.md"]


def publish_arms(store: FolderStore, tmp_path: Path, *cells: tuple[str, int]) -> None:
    """Results of arms of the SFT ablation, each with a curve."""
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "loss/total": 2.0}\n')
    for arm, seed in cells:
        publish_output(
            store, tmp_path / "output", "r", f"sft_arm-{arm}-{seed}", kind="evals",
            extra={"ablation": sft_result(arm, seed), "seconds": 1.0},
        )  # fmt: skip


def sft_tasks(seeds: range) -> list[str]:
    return ["prepare_data", *(f"sft_arm-{cell}" for cell in sft_cells(seeds)), "finish"]


def test_seeds_that_are_not_in_the_profile_any_more_are_left_out_and_named_once(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/store")
    publish_arms(store, tmp_path, ("before", 0), ("text", 0), ("narrow", 0), ("text", 1), ("narrow", 1))
    written = run(Config(), store, "r", tmp_path, "", sft_tasks(range(1, 2))).files
    summary, record = (json.loads(written[name]) for name in ("summary.json", "events.json"))
    assert {name: arm["seeds"] for name, arm in summary["ablation"]["arms"].items()} == {
        "before": [0], "text": [1], "narrow": [1],
    }  # fmt: skip
    kept = {"sft_arm-before-0", "sft_arm-text-1", "sft_arm-narrow-1"}
    assert set(record["events"]) == {step["name"] for step in summary["steps"]} == kept
    line = "folder and not in its profile, so left out: sft_arm-narrow-0, sft_arm-text-0"
    for name in ("report.html", "table.md"):
        assert written[name].count(line) == 1, name
    assert record["extra"]["warnings"] == [f"in this run's {line}"]

    every = run(Config(), store, "r", tmp_path, "", sft_tasks(range(2))).files
    assert "left out" not in every["table.md"] and "no result" not in every["table.md"]


def test_nothing_is_compared_where_only_left_out_seeds_have_results(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/store")
    publish_arms(store, tmp_path, ("text", 0))
    written = run(Config(), store, "r", tmp_path, "sft_arm-before-0: out of memory", sft_tasks(range(1, 3))).files
    assert "table.md" not in written and "so left out: sft_arm-text-0" in written["report.html"]


def test_an_arm_that_published_nothing_is_named_from_the_tasks_of_the_run(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path}/store")
    publish_arms(store, tmp_path, ("text", 0), ("narrow", 0), ("text", 1), ("narrow", 1), ("text", 2))
    written = run(Config(), store, "r", tmp_path, "sft_arm-before-0: out of memory", sft_tasks(range(3))).files
    assert json.loads(written["summary.json"])["ablation"]["no_result"] == ["before-0", "narrow-2"]
    for name in ("report.html", "table.md"):
        assert "no result: before-0, narrow-2" in written[name], name


@pytest.mark.parametrize(("rows", "points"), [(0, 5), (3, 5), (5, 5), (11, 5), (1000, 5)])
def test_thinning_keeps_order_and_the_ends(rows: int, points: int) -> None:
    given = [{"step": float(n)} for n in range(rows)]
    kept = thin(given, points)
    assert len(kept) <= points
    assert (kept[:1], kept[-1:]) == (given[:1], given[-1:])
    assert kept == sorted(kept, key=lambda row: row["step"])
