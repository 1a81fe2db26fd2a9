"""The swarm's benchmark with scripted agents, whose figures the tasks' own numbers of steps explain."""

from __future__ import annotations

import json

import pytest

from model.codec.chat import ToolCall
from model.data.families.world.facts import facts
from model.evals.swarm import FIGURES, followed, held_out_task, row
from model.swarm.orchestrator import SwarmEpisode
from model.swarm.trace import Recorder, Recording
from tests.benchmarks import swarm
from tests.corpus import small_tokenizer
from tests.samples import make_episode


@pytest.mark.slow
def test_scripted_agents_find_everything_and_the_swarm_takes_fewer_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(swarm, "trained", small_tokenizer)
    swarm.main(["--scripted", "--json", "--sizes", "6", "--tasks", "2", "--latency", "0"])
    found = json.loads(capsys.readouterr().out)
    assert found["f1_gain_points"] == 0.0 and found["best_single"] == "single"
    assert found["critical_steps_ratio"] > 1 and found["easy_overhead"] == 1.0
    wide = {row["way"]: row for row in found["table"] if row["family"] == "world_wide"}
    assert set(wide) == {"swarm", "must_delegate", "oracle_split", *swarm.SINGLE}
    assert all(row["f1"] == 1.0 and row["parts"] == 6 and row["failed"] == 0 for row in wide.values())
    assert wide["swarm"]["parallelism"] == 6 and wide["swarm"]["delegated"] == 1
    shares = {way: [row[name] for name in ("given", "returned", "kept")] for way, row in wide.items()}
    assert shares["swarm"] == [1, 1, 1] and shares["single"] == [0, 0, 1]
    parts = [held_out_task("world_wide", 6, index).worked.parts for index in range(2)]
    steps = [sum(len(part.steps) for part in some) + 1 for some in parts]
    assert wide["single"]["critical_steps"] == sum(steps) / 2


def test_tasks_are_held_out_or_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("eval", "train"):
        rows = held_out_task("world_wide", 4, 0, split).sample.answer["rows"]
        assert {facts().things[item.partition(":")[2]].split for item, *_ in rows} == {split}
    swarm.main(["--scripted", "--json", "--sizes", "2", "--tasks", "1", "--latency", "0", "--split", "train"])
    assert json.loads(capsys.readouterr().out)["f1_gain_points"] == 0.0


def test_a_gain_is_that_over_the_best_single_agent_and_rows_that_broke_give_no_figure() -> None:
    def line(way: str, f1: float, steps: float, family: str = "world_wide") -> dict[str, object]:
        return {"way": way, "family": family, "f1": f1, "critical_steps": steps, "seconds": steps / 10}

    rows = [line("swarm", 0.9, 8), line("swarm", 0.7, 8), line("single", 0.5, 20), line("hide_tool_result", 0.6, 24),
            line("discard_all", 0.4, 40), line("swarm", 1.0, 3, "world_easy"),
            line("single", 1.0, 2, "world_easy")]  # fmt: skip
    assert swarm.summary(rows) == {
        "best_single": "hide_tool_result", "f1_gain_points": 20.0, "critical_steps_ratio": 3.0, "wall_clock_ratio": 3.0,
        "easy_overhead": 1.5,
    }  # fmt: skip
    before = [*rows, line("untrained_discard_all", 0.7, 40), line("untrained_single", 1.0, 2, "world_easy")]
    assert swarm.summary(before)["best_single"] == "untrained_discard_all"
    assert swarm.summary(before)["f1_gain_points"] == 10.0
    broken = [{"way": way, "family": "world_wide", "f1": 0.0} for way in ("swarm", *swarm.SINGLE)]
    assert set(swarm.summary(broken).values()) == {None}


def test_episodes_that_broke_and_those_that_lost_a_sub_agent_are_counted_apart() -> None:
    figures = dict.fromkeys((*FIGURES, "subtasks_assigned"), 1.0)
    episodes = [
        make_episode(finish_reason="failed", failure="a page broke"),
        make_episode(metrics=figures, lost="a sub-agent broke"),
        make_episode(metrics=figures),
    ]
    found = row("swarm", "world_wide", 2, [held_out_task("world_wide", 2, 0)] * 3, episodes)
    assert (found["failed"], found["lost"], found["delegated"]) == (1, 1, 1.0)


def test_a_part_is_lost_where_it_is_not_given_not_found_or_not_kept() -> None:
    task = held_out_task("world_wide", 4, 0)
    prompts, lines = [part.prompt for part in task.worked.parts], [part.line for part in task.worked.parts]
    recorder = Recorder(lambda: 0.0)
    leading = Recording(recorder.agent("main"))
    asked = [(prompts[0], lines[0]), (prompts[1], lines[1]), (prompts[2], "wrong"), (prompts[3], "error: no agent x")]
    for number, (prompt, result) in enumerate(asked):
        call = ToolCall(f"functions.assign_task:{number}", "assign_task", {"agent": "finder", "prompt": prompt})
        leading.tool_call(0.0, call, result)
        if not result.startswith("error: no agent"):  # such a call has no sub-agent
            recorder.agent("finder", parent=leading.agent, task=prompt)
    answer = make_episode(response="\n".join([lines[0], "1:none", lines[3]]))
    swarms = SwarmEpisode(
        **vars(answer),
        trace=recorder.trace(question="", answer="", outcome="answer", reward=0.5, critical_steps=3, budget=9),
    )
    alone = make_episode(response="\n".join(lines[:2]))
    assert followed([task], [swarms]) == {"given": 0.75, "returned": 0.5, "kept": 0.5}
    assert followed([task], [alone]) == {"given": 0.0, "returned": 0.0, "kept": 0.5}
    assert followed([held_out_task("world_deep", 2, 0)], [alone]) == {}, "its answer is not a line for each part"


def test_nothing_is_measured_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    swarm.main(["--json"])
    assert "CHECKPOINT" in json.loads(capsys.readouterr().out)["not_measured"]
