"""A suite that cannot tell its floor is measured on more tasks: with a model of random weights, killed in between."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.evaluate import more_tasks
from components.evaluate.config import Config
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import read_metrics, run_step
from components.runtime.store.open_store import open_store
from model.data.batches.folder import DataFolder
from model.evals.score import Outcome
from model.evals.scorer import Evaluation
from model.evals.suites import SUITES, held_out
from tests.published import publish_output
from tests.tiny_folders import write_checkpoint, write_data_folder

FAMILIES = ("digit_string", "fact_qa")


class Killed(BaseException):
    """What ends an attempt."""


def test_a_suite_near_its_floor_gets_the_tasks_that_are_left_and_a_killed_attempt_asks_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(more_tasks, "STRIDE", 6)
    for name in FAMILIES:
        monkeypatch.setitem(SUITES, name, replace(SUITES[name], max_new_tokens=2))
    folder = write_data_folder(tmp_path / "data", 16)
    index = json.loads((folder / "index.json").read_text())
    index["families"] = {name: index["families"][name] for name in FAMILIES}
    (folder / "index.json").write_text(json.dumps(index))
    store = open_store()
    data = publish_output(store, folder, "r", "prepare_data", kind="data")
    parl = publish_output(store, write_checkpoint(tmp_path / "parl"), "r", "parl")
    asked: list[dict[str, int]] = []
    left = 3
    whole = Evaluation.outcomes

    async def outcomes(self: Evaluation, *arguments: Any) -> Any:
        nonlocal left
        if (left := left - 1) < 0:
            raise Killed
        asked.append({name: len(tasks) for name, tasks in arguments[2].items()})
        return await whole(self, *arguments)

    monkeypatch.setattr(Evaluation, "outcomes", outcomes)

    def evaluated(run: str, **config: object) -> Manifest:
        monkeypatch.setenv("MOONFLOW_RUN_ID", run)
        common = {"samples_intermediate": 2, "well_formed": 0.0, "sigmas": 2.0, "champion": "", "temperature": 1.0}
        return run_step("evaluate", {**common, **config}, {"data": data.uri, "parl": parl.uri})

    near = {"samples": 4, "samples_at_floor": 14, "floors": "digit_string=0.05, fact_qa=0"}
    with pytest.raises(Killed):
        evaluated("r", **near)
    first = {"digit_string": 4, "fact_qa": 4}
    assert asked == [dict.fromkeys(FAMILIES, 2), first, {"digit_string": 6}]
    left = 100
    held = evaluated("r", **near)
    assert asked[3:] == [{"digit_string": 4}] and held.extra["decision"] == "hold"
    rows = {row["suite"]: row for row in held.extra["evals"] if row["step"] == "parl"}
    assert {name: row["n"] for name, row in rows.items()} == {"digit_string": 14, "fact_qa": 4}

    at_once = evaluated("other", samples=14, samples_at_floor=0, floors="")
    assert rows["digit_string"] in at_once.extra["evals"]
    scores = []
    for made in (held, at_once):
        fetched = tmp_path / made.run_id
        manifests.fetch(store, made.uri, fetched)
        scores.append(json.loads((fetched / "evals.json").read_text())["parl"]["digit_string"])
        named = f"eval/digit_string/{rows['digit_string']['ability']}/image"
        assert read_metrics(fetched)[-1][named] == rows["digit_string"]["value"]
    assert scores[0] == scores[1] and scores[0]["tokens"] > 0

    left = 0  # corrected rules measure nothing, and say so if that leaves a floor open
    again = evaluated("r", **{**near, "floors": "fact_qa=0.05"})
    assert again.extra["decision"] == "hold" and again.extra["evals"] == held.extra["evals"]
    assert "fact_qa: too few tasks to tell a floor" in again.extra["warnings"][-1]

    suite, data_folder = SUITES["digit_string"], DataFolder(folder)
    more = more_tasks.MoreTasks(Config(samples_at_floor=600), None, data_folder, [])  # type: ignore[arg-type]
    first_16 = held_out(data_folder, suite, 600)
    there = [len(more.next_round([suite], {"digit_string": [Outcome(0.0, True, 1)] * n}) or ()) for n in (10, 15, 16)]
    assert there == [1, 1, 0] and len(first_16) == 16
    assert more.next_round([suite], {"digit_string": [Outcome(0.0, True, 1)] * 12}) == {"digit_string": first_16[12:]}
