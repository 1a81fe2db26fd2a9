"""``moonflow evaluate``: real checkpoints, here and served by our own server; small hosts in place of other engines."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.serve.stage import serving
from model.codec.image import ImageConfig
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize, tokenize_prompt
from model.evals.suites import SUITES
from model.rollout.pictures import pictures
from model.rollout.protocol import Request
from tests.engine_hosts import ChatHost, SGLangHost
from tests.pipelines.evaluation.command import Run, suite, tasks_of
from tests.reference import asked, next_turn
from tests.scripted import write_scripted
from tests.tiny_folders import tiny_tokenizer

SEARCHES = (
    "</think>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.search:0",
    "<|tool_call_argument_begin|>", '{"query": "lima"}', "<|tool_call_end|>", "<|tool_calls_section_end|>",
    "<|im_end|>",
)  # fmt: skip


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that searches for Lima in every turn."""
    return write_scripted(tmp_path_factory.mktemp("searching") / "checkpoint", SEARCHES)


def test_a_folder_is_scored_as_its_answers_deserve(two: Path, run: Run, scored: Callable[..., dict[str, Any]]) -> None:
    names = ("digit_count", "fact_qa")
    found = scored(two, *suite(*names), "--tasks", 24)
    right = sum(int(sample.answer) == 2 for sample in tasks_of("digit_count", 24))
    fact_qa, digit_count = found["suites"]
    assert 0 < right < 24
    expected = {
        "suite": "digit_count", "ability": "reasoning", "modality": "image", "correct": right, "n": 24,
        "score": right / 24, "failed": 0,
    }  # fmt: skip
    assert {name: digit_count[name] for name in expected} == expected
    assert digit_count["interval"][0] < right / 24 < digit_count["interval"][1]
    facts = sum(str(sample.answer) == "2" for sample in tasks_of("fact_qa", 24))
    assert fact_qa["correct"] == facts
    assert digit_count["chance"] >= right / 24
    assert found["checkpoint"].endswith(str(two)) and found["engine"].startswith("embedded")
    assert found["passed_over"] == {} and found["unfinished"] == []

    code, out, err = run(two, *suite(*names), "--tasks", 24)
    assert code == 0 and re.search(rf"^ *digit_count +reasoning +image +{right} +24 +{right / 24:.2f} ", out, re.M)
    assert f"fact_qa: {facts} of 24 correct" in err and "fact_qa" in out and str(two) in err


@pytest.mark.slow
def test_our_own_server_gives_the_same_scores(
    two: Path, searching: Path, scored: Callable[..., dict[str, Any]]
) -> None:
    """Messages, pictures and tool calls on the way there, against token ids here; greedy."""
    for checkpoint, names in ((two, ()), (searching, ("array_tool", "sub_search", "wide_search_swarm"))):
        here = scored(checkpoint, *suite(*names), "--tasks", 2)
        with serving(checkpoint, "moonflow", 60) as address:
            there = scored(checkpoint, *suite(*names), "--tasks", 2, "--engine", f"{address}/v1")
        assert there["engine"].startswith(f"{address} (OpenAI-compatible") and "model moonflow" in there["engine"]
        unsent = {name for name in SUITES if name.startswith(("video", "needle"))} if not names else set()
        assert set(there["passed_over"]) == unsent
        assert there["suites"] == [row for row in here["suites"] if row["suite"] not in unsent]
        if names:
            assert all(row["figures"]["tool_calls"] >= 2 for row in here["suites"])
        else:
            assert any(row["correct"] for row in here["suites"])
            assert {row["suite"] for row in here["suites"]} == SUITES.keys() - here["passed_over"].keys()


def test_a_foreign_server_that_knows_the_answers_has_full_scores(
    two: Path, scored: Callable[..., dict[str, Any]]
) -> None:
    names = ("fact_qa", "array_tool", "sub_search", "array_tool_image")
    samples = [sample for name in names for sample in tasks_of(name, 4)]
    with ChatHost() as host:
        host.reply = lambda body: next_turn(body, one_each(body, samples))
        found = scored(two, *suite(*names), "--tasks", 4, "--engine", host.url)
    assert [(row["correct"], row["n"], row["failures"]) for row in found["suites"]] == [(4, 4, [])] * 4


def one_each(body: dict[str, Any], samples: list[Sample]) -> list[Sample]:
    """Of tasks that ask the same about other pictures, the one whose picture is shown."""
    alike = [sample for sample in samples if asked(sample.messages) == asked(body["messages"])]
    if len(alike) == 1:
        return alike
    shown = [part["image_url"]["url"] for m in body["messages"] if isinstance(m["content"], list)
             for part in m["content"] if part["type"] == "image_url"]  # fmt: skip
    return [sample for sample in alike if pictures_of(sample) == shown]


def pictures_of(sample: Sample) -> list[str]:
    """As they are sent: cut into patches and put together again."""
    prompt = tokenize_prompt(sample, tiny_tokenizer(), ImageConfig())
    request = Request(prompt.input_ids.tolist(), prompt.pixel_values, prompt.grid_thws)
    return pictures(request, ImageConfig(), "a chat server")


def test_sglang_is_asked_by_token_ids(two: Path, scored: Callable[..., dict[str, Any]]) -> None:
    tokenizer, known = tiny_tokenizer(), {}
    for name in ("fact_qa", "sub_search"):
        for sample in tasks_of(name, 4):
            whole = tokenize(sample, tokenizer, ImageConfig())
            ids, loss = whole.input_ids.tolist(), whole.loss_mask.tolist()
            starts = [n for n in range(1, len(ids)) if loss[n] and not loss[n - 1]]
            for start in starts:
                end = next((n for n in range(start, len(ids)) if not loss[n]), len(ids))
                known[tuple(ids[:start])] = ids[start:end]
    with SGLangHost() as host:
        host.complete = lambda ids, sampling: (known[tuple(ids)], "stop")
        found = scored(two, *suite("fact_qa", "sub_search", "video_clip"), "--tasks", 4, "--engine", host.url)
        assert {path for path, _ in host.seen} == {"/generate"}
    assert "SGLang" in found["engine"] and list(found["passed_over"]) == ["video_clip"]
    assert [(row["correct"], row["n"]) for row in found["suites"]] == [(4, 4)] * 2


def test_a_task_that_fails_is_named_and_the_others_count(two: Path, run: Run) -> None:
    samples = tasks_of("fact_qa", 6)
    with ChatHost() as host:

        def reply(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
            broken = asked(body["messages"]) == asked(samples[2].messages)
            return ({"content": "?"}, "tired") if broken else next_turn(body, samples)

        host.reply = reply
        code, out, err = run(two, *suite("fact_qa"), "--tasks", 6, "--engine", host.url)
    assert code == 0 and re.search(r"^ *fact_qa .* 5 +6 +0.83 .* 1 *$", out, re.M)
    assert re.search(rf"^failed: fact_qa/{samples[2].key}: .*'tired'", out, re.M) and "5 of 6 correct, 1 failed" in err


def test_a_server_that_answers_nothing_is_one_line(two: Path, run: Run) -> None:
    with ChatHost() as host:
        host.reply = lambda body: ({"content": "?"}, "tired")
        code, out, err = run(two, *suite("fact_qa"), "--tasks", 3, "--engine", host.url)
        assert (code, out) == (2, "") and err.splitlines()[-1].startswith("moonflow: every episode failed; the first:")
    code, out, err = run(two, "--engine", host.url)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "is it running?" in err


def test_a_server_that_dies_leaves_what_was_finished(two: Path, run: Run) -> None:
    tasks = [sample for name in ("fact_qa", "sub_search") for sample in tasks_of(name, 3)]
    with ChatHost() as host:
        answered: list[int] = []

        def reply(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
            if "tools" not in body:
                answered.append(1)
                return next_turn(body, tasks)
            while len(answered) < 3:
                time.sleep(0.01)
            host.socket.close()  # no more connections
            raise ConnectionResetError

        host.reply, host.handle_error = reply, lambda *_: None  # type: ignore[method-assign]
        code, out, err = run(two, *suite("fact_qa", "sub_search"), "--tasks", 3, "--engine", host.url)
    assert code == 2 and re.search(r"^ *fact_qa .* 3 +3 +1.00", out, re.M) and "not finished: sub_search" in out
    assert re.search(r"^moonflow: the server at .* failed 4 times.*is it running\?$", err.splitlines()[-1])


@pytest.mark.slow
def test_ctrl_c_shows_what_is_finished(two: Path) -> None:
    tasks = [sample for name in ("fact_qa", "sub_search") for sample in tasks_of(name, 3)]
    with ChatHost() as host:
        waits = True

        def reply(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
            while "tools" in body and waits:
                time.sleep(0.01)
            return next_turn(body, tasks)

        host.reply = reply
        names = suite("fact_qa", "sub_search")
        command = [sys.executable, "-m", "pipelines.cli", "evaluate", str(two), *names, "--tasks", "3"]
        process = subprocess.Popen(
            [*command, "--engine", host.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("fact_qa: "):
            assert line, process.communicate()
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            waits = False
    assert process.returncode == 130
    assert re.search(r"^ *fact_qa .* 3 +3 +1.00", out, re.M) and "not finished: sub_search" in out
    assert err == "moonflow: stopped before all suites were finished\n"


def test_a_model_too_small_for_a_suite_passes_it_over(
    two: Path, tmp_path: Path, run: Run, scored: Callable[..., dict[str, Any]]
) -> None:
    small = shutil.copytree(two, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    longest = max(len(tokenize(sample, tiny_tokenizer(), ImageConfig()).input_ids) for sample in tasks_of("fact_qa", 4))
    config["text_config"]["max_position_embeddings"] = longest
    (small / "config.json").write_text(json.dumps(config))
    found = scored(small, *suite("fact_qa", "wide_search_swarm"), "--tasks", 4)
    assert [row["suite"] for row in found["suites"]] == ["fact_qa"]
    assert f"the context of {longest}" in found["passed_over"]["wide_search_swarm"]
    code, out, err = run(small, *suite("wide_search_swarm"), "--tasks", 4)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "no suite can be run: wide_search_swarm: " in err
