"""One run's result from its files, and all of them together, against numpy and by hand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model.boundary.errors import MoonflowError
from pipelines.seeds.results import RESULT, SeedRun, compare, ended, metrics, save, saved, together
from pipelines.seeds.table import markdown, outcome_of, sentences, show


def row(suite: str, value: float, n: int = 64, chance: float = 0.1) -> dict:
    return {
        "suite": suite, "ability": "knowledge", "modality": "image",
        "value": value, "stderr": 0.05, "n": n, "chance": chance,
    }  # fmt: skip


PHOTO, DIGITS = [0.61, 0.25, 0.5, 0.25], [0.9, 0.8, 0.85]
BAD = ["photo 0.25 < 0.5"]
RUNS = [
    SeedRun(1, "promoted", {"parl": 1005}, [], 100.0, [row("photo", PHOTO[0]), row("digits", DIGITS[0])]),
    SeedRun(2, "held", {"parl": 2005}, BAD, 300.0, [row("photo", PHOTO[1]), row("digits", DIGITS[1])]),
    SeedRun(3, "failed", {}, ["serve: away"], 200.0, [row("photo", PHOTO[2]), row("digits", DIGITS[2], n=60)]),
    SeedRun(4, "promoted", {"parl": 4005}, [], 104.0, [row("photo", PHOTO[3])]),
    SeedRun(5, "failed", {"parl": 5005}, ["vit_pretrain: no memory"], 6.0),
    SeedRun(6, "unfinished", {"parl": 6005}),
]  # fmt: skip


def test_mean_and_spread_are_those_of_numpy() -> None:
    found = compare("tiny", RUNS)
    assert [suite["suite"] for suite in found["suites"]] == ["digits", "photo"]
    for suite, values in zip(found["suites"], (DIGITS, PHOTO), strict=True):
        assert suite["mean"] == pytest.approx(np.mean(values))
        assert suite["sd"] == pytest.approx(np.std(values, ddof=1))
        assert suite["worst"] == min(values) and suite["chance"] == pytest.approx(0.1)
    assert [suite["n"] for suite in found["suites"]] == [[64, 64, 60], [64] * 4]


def test_the_worst_of_equals_is_the_first_run() -> None:
    assert [suite["worst_run"] for suite in compare("tiny", RUNS)["suites"]] == [2, 2]


def test_one_run_has_no_spread_and_none_has_no_figures() -> None:
    (suite,) = compare("tiny", RUNS[3:4])["suites"]
    assert (suite["mean"], suite["sd"], suite["worst"]) == (0.25, None, 0.25)
    nothing = compare("tiny", RUNS[5:])
    assert nothing["suites"] == [] and nothing["seconds"] is None
    assert sentences(nothing) == ["promoted 0 of 0", "not finished: seeds 6"]
    states = ("promoted", "passed", "held", "failed", "unfinished")
    assert set(metrics(nothing)) == {f"runs/{state}" for state in states}


def test_every_run_is_counted_and_named() -> None:
    found = compare("tiny", RUNS)
    assert (found["promoted"], found["held"], found["failed"], found["unfinished"]) == ([1, 4], [2], [3, 5], [6])
    assert found["seconds"] == {"mean": 168.0, "longest": 300.0, "longest_run": 2}
    assert sentences(found) == [
        "promoted 2 of 5",
        "held back by the gate: seeds 2 (photo 0.25 < 0.5)",
        "failed: seeds 3 (serve: away)",
        "failed: seeds 5 (vit_pretrain: no memory)",
        "not finished: seeds 6",
        "seconds per run: mean 168, longest 300 (seeds 2)",
    ]
    assert outcome_of(RUNS[1]) == "seeds 2: held back by the gate after 5 min 0 s: photo 0.25 < 0.5"


def test_the_table_and_the_page_show_the_same() -> None:
    found = compare("tiny", RUNS)
    with (console := Console(width=80)).capture() as shown:
        show(found, console)
    page = markdown(found)
    for name, cells in (("digits", "0.10 0.850 0.050 0.80 (2) 60 to 64"), ("photo", "0.10 0.402 0.182 0.25 (2) 64")):
        assert f"{name} {cells}".split() in [line.split() for line in shown.get().splitlines()]
        assert f"{name} {cells}".split() in [line.replace("|", "").split() for line in page.splitlines()]
    assert "| photo | 0.61 | 0.25 | 0.50 | 0.25 |" in page and "- failed: seeds 3 (serve: away)" in page


def test_mlflow_gets_the_figures_below_the_names_that_runs_have() -> None:
    figures = metrics(compare("tiny", RUNS))
    assert figures["eval/photo/knowledge/image/mean"] == pytest.approx(np.mean(PHOTO))
    assert figures["eval/photo/knowledge/image/sd"] == pytest.approx(np.std(PHOTO, ddof=1))
    assert figures["eval/photo/knowledge/image/worst"] == 0.25
    assert (figures["runs/promoted"], figures["runs/failed"], figures["seconds/longest"]) == (2.0, 2.0, 300.0)


def finished(folder: Path, decision: str) -> Path:
    """The files of finish after a run that the gate decided on."""
    rows = [{"step": step, **row("photo", value)} for step, value in (("init", 0.0), ("parl", 0.5))]
    for each in rows:
        del each["chance"]
    rules = [{"reason": "photo 0.50 < 0.6", "passed": False}, {"reason": "digits 0.90 >= 0.8", "passed": True}]
    evaluation = {"evals": rows, "candidate": "parl", "decision": decision, "rules": rules, "chance": {"photo": 0.17}}
    (folder / "summary.json").write_text(json.dumps({"seconds": 61.5}))
    (folder / "events.json").write_text(json.dumps({"events": {}, "extra": {"evaluate": evaluation}}))
    return folder


def test_a_result_holds_the_final_models_scores_and_why_it_was_held_back(tmp_path: Path) -> None:
    run = ended(finished(tmp_path, "hold"), 2, {"parl": 2005}, "", time.monotonic())
    assert (run.state, run.why, run.seconds, run.complete) == ("held", ["photo 0.50 < 0.6"], 61.5, True)
    assert [(each["value"], each["chance"]) for each in run.scores] == [(0.5, 0.17)]
    save(tmp_path, run)
    assert saved(tmp_path) == run


def test_a_run_that_the_gate_let_through_was_promoted_or_passed(tmp_path: Path) -> None:
    """``pretrain`` promotes nothing."""
    folder = finished(tmp_path, "promote")
    passed = ended(folder, 1, {}, "", time.monotonic())
    (folder / "summary.json").write_text(json.dumps({"seconds": 61.5, "promoted": {"version": "1"}}))
    promoted = ended(folder, 1, {}, "", time.monotonic())
    assert (passed.state, promoted.state) == ("passed", "promoted") and passed.complete and promoted.complete
    found = compare("base", [passed, replace(passed, number=2, state="held")])
    assert sentences(found)[0] == "passed the gate 1 of 2" and outcome_of(passed).startswith("seeds 1: passed the gate")


def test_a_failure_after_the_evaluation_keeps_the_scores(tmp_path: Path) -> None:
    run = ended(finished(tmp_path, "promote"), 1, {}, "serve: away", time.monotonic())
    assert (run.state, run.why, run.complete, len(run.scores)) == ("failed", ["serve: away"], False, 1)


def test_a_failure_before_any_file_is_a_result_too(tmp_path: Path) -> None:
    run = ended(tmp_path, 1, {}, "vit_pretrain: no memory", time.monotonic() - 5)
    assert (run.state, run.why, run.scores) == ("failed", ["vit_pretrain: no memory"], [])
    assert run.seconds is not None and 5 <= run.seconds < 10


def test_a_result_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert saved(tmp_path) is None
    for text in ("{", "[]", '{"number": 1}'):
        (tmp_path / RESULT).write_text(text)
        assert saved(tmp_path) is None


def test_a_folder_without_a_result_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match=r"has no seeds\.json"):
        together(tmp_path)
    for text in ("{", "{}", "[]", "1", '{"profile": "tiny", "runs": [{}]}', '{"profile": "tiny", "runs": 3}'):
        (tmp_path / "seeds.json").write_text(text)
        with pytest.raises(MoonflowError, match=r"seeds\.json is damaged .*: run moonflow seeds again"):
            together(tmp_path)
    written = json.dumps(compare("tiny", RUNS))
    (tmp_path / "seeds.json").write_text(written)
    assert json.dumps(together(tmp_path)) == written
