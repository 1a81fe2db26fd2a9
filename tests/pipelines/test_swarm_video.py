from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.swarm.trace import Trace
from model.swarm.video import analysis, decoding
from pipelines import swarm_video
from pipelines.cli import main
from tests.chat_server import Script, chatting, say
from tests.http_server import nobody
from tests.odd_media import noise, video
from tests.waiting import happens

KEY = "sk-very-secret"
MERGED = "CHAPTER | 1 | 00:01 | Opening\nSUMMARY: it flickers\nANSWER: at 00:01 <b>\x1b[2J"


@pytest.fixture
def moonflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command in this process, in a folder with two videos of three seconds: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        (tmp_path / f"clip{number}.mp4").write_bytes(video([noise(36, 64, 3, seed=n) for n in range(6)], fps=2))

    def run(url: str, *arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["moonflow", "swarm", "video", "--endpoint", url, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    yield run


def times(body: dict[str, Any]) -> list[str]:
    """The times that stand before the frames of a part; empty for the orchestrator."""
    content = body["messages"][1]["content"]
    return [] if isinstance(content, str) else [each["text"][:-1] for each in content[1:-1] if each["type"] == "text"]


def watcher(body: dict[str, Any]) -> Any:
    """An event for each frame."""
    return say("\n".join(f"{at} | 4 | <i>flicker</i>" for at in times(body)) or MERGED)


def test_each_failure_costs_its_part_and_all_else_is_in_the_report(
    moonflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any]) -> Any:
        task = str(body["messages"][1]["content"])
        if "clip1.mp4, from 00:01" in task:
            return 400, {"error": {"message": f"too dark, says {KEY}"}}
        return say("I see nothingness in " + KEY) if "clip2.mp4, from 00:02" in task else watcher(body)

    (tmp_path / "broken.mp4").write_bytes((tmp_path / "clip1.mp4").read_bytes()[:200])
    monkeypatch.setenv("SERVER_KEY", KEY)
    script = Script(answer)
    with chatting(script) as url:
        status, out, err = moonflow(
            url, "clip1.mp4", "broken.mp4", "clip2.mp4", "--part-seconds", "1", "--frames", "2", "--api-key-env",
            "SERVER_KEY", "--price-in", "2", "--price-out", "10", "--out", "r.html", "--trace", "t.json", "--json",
            "--question", "when?", "--sequential",
        )  # fmt: skip
    assert (status, err) == (0, "")
    found = json.loads(out.splitlines()[-1])
    assert found["parts"] == {"answer": 4, "failed": 1, "unreadable": 1} and found["unreadable_files"] == 1
    assert (found["events"], found["answer"][:8], found["outcome"]) == (8, "at 00:01", "answer")
    # Six parts, of which one is refused, and once more one at a time; and the orchestrator.
    assert found["prompt_tokens"] == 100 * (5 + 5 + 1) and found["cost"] == pytest.approx(11 * 0.0003)
    assert found["speedup_is"] == "measured" and found["sequential_s"] > 0 and "(measured: " in out
    assert "8 events; 3 files (1 unreadable), 4 of 6 parts watched, 1 failed, 1 unreadable" in out
    for line in ("clip1.mp4 00:01-00:02: ", "broken.mp4: it cannot be decoded", "clip2.mp4 00:02-00:03: its answer"):
        assert f"not watched: {line}" in out
    assert "\x1b" not in out and "clip1.mp4 00:00 begins: File clip1.mp4, from 00:00 to 00:01. Look for: when?" in out
    page, trace = Path("r.html").read_text(), Trace.from_json(Path("t.json").read_text())
    assert KEY not in page + trace.to_json() + out and "&lt;i&gt;flicker&lt;/i&gt;" in page and "<i>f" not in page
    assert "Opening" in page and "it flickers" in page and "measured" in page and page.count("<img") >= 4
    names = [agent.name for agent in trace.agents]
    assert names == ["orchestrator", *(f"clip{n}.mp4 00:0{s}" for n in (1, 2) for s in range(3)), "one at a time"]
    assert [agent.outcome for agent in trace.agents[1:4]] == ["answer", "failed", "answer"]
    assert trace.critical_steps == 1 + 1 + 6 and trace.outcome == "answer"
    picture = script.requests[0]["messages"][1]["content"][2]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/") and "tools" not in script.requests[0]


def test_nothing_found_is_status_1_and_the_report_is_there(moonflow: Any, tmp_path: Path) -> None:
    with chatting(Script(lambda body: say("none"))) as url:
        status, out, err = moonflow(url, "clip1.mp4", "nowhere.mp4", "--model", "kimi")
    assert (
        status == 1
        and err.startswith("moonflow: nothing was found")
        and "0 events; 2 files (1 unreadable), 1 of 1" in out
    )
    assert sorted(path.suffix for path in (tmp_path / "runs" / "swarm").iterdir()) == [".html", ".json"]


def test_a_server_that_refuses_the_key_is_asked_no_more(moonflow: Any) -> None:
    script = Script(lambda body: (401, {"error": {"message": "no"}}) if len(script.requests) > 1 else watcher(body))
    with chatting(script) as url:
        status, out, err = moonflow(url, "clip1.mp4", "clip2.mp4", "--part-seconds", "1", "--at-once", "1", "--json")
    assert status == 0 and "no summary" in err and len(script.requests) == 3, "the orchestrator asks once"
    assert json.loads(out.splitlines()[-1])["parts"] == {"answer": 1, "failed": 1, "not asked": 4}


def test_what_cannot_be_asked_is_one_line(moonflow: Any, tmp_path: Path) -> None:
    with nobody() as url:
        for arguments, told in [
            ((), "cannot be reached"),
            (("--price-in", "3"), "together"),
            (("--out", "."), "--out"),
            (("--frames", "128", "--frame-size", "2048"), "give --frames 13 or --frame-size 655, or less"),
        ]:
            status, out, err = moonflow(url, "clip1.mp4", *arguments)
            assert (status, out) == (2, "") and told in err and len(err.splitlines()) == 1, arguments
    script = Script(watcher, models={"data": [{"id": "a"}, {"id": "b"}]})
    with chatting(script) as url:
        status, _, err = moonflow(url, "clip1.mp4")
    assert status == 2 and "has a, b: name one with --model" in err and script.requests == []


def test_a_server_that_hangs_is_asked_no_more_after_three_rounds(moonflow: Any) -> None:
    """Two parts at once are asked in each round; what hangs is let go by the clock."""
    script = Script(lambda body: say("none"), seconds=1.0)
    with chatting(script) as url:
        status, out, err = moonflow(
            url, "clip1.mp4", "clip2.mp4", "clip1.mp4", "--part-seconds", "1", "--at-once", "2",
            "--request-timeout", "0.2", "--sequential", "--json",
        )  # fmt: skip
        assert happens(lambda: script.running == 0)
    assert status == 1 and "nothing was found" in err and len(script.requests) <= 7
    parts = json.loads(out.splitlines()[-1])["parts"]
    assert set(parts) == {"failed", "not asked"} and 3 <= parts["failed"] <= 7
    assert "not asked any more, as" in out and "fewer parts at once with --at-once" in out and "--parallel" not in out


def test_the_speed_up_is_not_measured_by_parts_that_end_in_another_way(moonflow: Any) -> None:
    script = Script(lambda body: (400, {"error": {"message": "no"}}) if len(script.requests) > 4 else watcher(body))
    with chatting(script) as url:
        status, out, _ = moonflow(url, "clip1.mp4", "--part-seconds", "1", "--sequential", "--json", "--out", "r.html")
    assert status == 0 and len(script.requests) == 5, "three parts, the orchestrator, and one part again"
    found = json.loads(out.splitlines()[-1])
    assert found["sequential_s"] is None and found["speedup_is"] == "at most"
    assert "parts at a time" not in out and "one part at a time: at most " in out
    told = "not measured: clip1.mp4 00:00 ended as failed, before as answer)"
    assert told in out and told in Path("r.html").read_text() and "speed-up, at most" in Path("r.html").read_text()


@pytest.mark.parametrize("broken", ["render", "merge"])
def test_an_error_that_nobody_foresaw_keeps_what_can_be_kept(
    moonflow: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    where = (swarm_video.page, "render") if broken == "render" else (analysis, "merging_task")
    monkeypatch.setattr(*where, fail)
    with chatting(Script(watcher)) as url, pytest.raises(ZeroDivisionError):
        moonflow(url, "clip1.mp4", "--out", "r.html", "--trace", "t.json")
    assert [agent.outcome for agent in Trace.from_json(Path("t.json").read_text()).agents] == [
        "answer" if broken == "render" else "stopped",
        "answer",
    ]
    assert broken == "render" or "flicker" in Path("r.html").read_text()


def test_a_decoder_without_its_filter_is_named(moonflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "pyseccomp.py").write_text("raise ImportError")
    (tmp_path / "lib" / "model").symlink_to(decoding.ROOT / "model")
    monkeypatch.setattr(decoding, "ROOT", tmp_path / "lib")
    with chatting(Script(watcher)) as url:
        status, out, _ = moonflow(url, "clip1.mp4")
    assert status == 0 and "less confined, without seccomp: libseccomp is not installed" in out


def test_a_signal_ends_all_and_keeps_what_was_found(moonflow: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if len(script.requests) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # longer than it takes to stop
        return watcher(body)

    script = Script(answer)
    with chatting(script) as url:
        status, out, err = moonflow(
            url, "clip1.mp4", "--part-seconds", "1", "--at-once", "1", "--out", "r.html", "--trace", "t.json"
        )
        assert happens(lambda: script.running == 0), "what it still says is not of the next test"
    assert (status, err) == (130, "moonflow: stopped; the report has what was found\n")
    assert "flicker" in Path("r.html").read_text() and "stopped before the end" in Path("r.html").read_text()
    trace = Trace.from_json(Path("t.json").read_text())
    assert [agent.outcome for agent in trace.agents] == ["stopped", "answer", "stopped", "stopped"]
