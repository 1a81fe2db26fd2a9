from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from components.runtime.tracking import mlflow_runs
from model.boundary.errors import MoonflowError
from model.swarm.trace import Recorder, Trace
from pipelines.swarm_traces import show
from tests.components.finish.page import Page
from tests.swarm.test_trace import recorded


def printed(given: Path, output: Path | None = None, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(given, output, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.json"
    path.write_text(recorded(2, 4, 3).to_json())
    return path


def lanes(text: str) -> list[str]:
    """The lines of the agents."""
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split() == ["agent", "steps", "calls", "new"])
    return lines[head + 1 : -2]


def test_a_trace_is_drawn_in_the_terminal_and_its_page_lies_next_to_it(file: Path) -> None:
    text = printed(file)
    assert f"wrote {file.with_suffix('.html')}" in text and Page(file.with_suffix(".html").read_text()).texts
    assert "reward    0.5, parallel 0.75" in text and "7 of 12 steps, 7.0 s, 12 completions, 4 calls" in text
    main, *subs = lanes(text)
    assert [line.split()[0] for line in (main, *subs)] == ["◆", "finder", "◆", "finder"]
    # The episode takes 7 seconds: of the slowest agent's lane, seconds 2 to 6 are full.
    lane = subs[1][subs[1].index("part 1") + 6 :]
    filled = lane.count("█")
    assert filled == pytest.approx(60 * 4 / 7, abs=1.5)
    assert main.count("─") == pytest.approx(60 * 3 / 7, abs=9) and main.count("█") >= 20


def test_another_output_can_be_named_and_the_trace_is_never_replaced(file: Path, tmp_path: Path) -> None:
    printed(file, tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").is_file() and not file.with_suffix(".html").exists()
    before = file.read_text()
    with pytest.raises(MoonflowError, match="would be replaced by its page: give another --output"):
        printed(file, file)
    assert file.read_text() == before
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(MoonflowError, match="cannot write"):
        printed(file, blocked / "page.html")


def test_hostile_text_and_markup_reach_the_terminal_as_text(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_text(recorded(1, text="[red]bold[/red] \x1b[2J\nsecond line").to_json())
    text = printed(path)
    assert "[red]bold[/red] \ufffd[2J second line" in text and "\x1b" not in text


def test_32_agents_and_a_narrow_terminal_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    path.write_text(recorded(*[3] * 32).to_json())
    text = printed(path, width=80)
    assert len(lanes(text)) == 33 and all(len(line) <= 80 for line in lanes(text))


def test_an_episode_that_took_no_time_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "short.json"
    recorder = Recorder(lambda: 0.0)
    recorder.agent("orchestrator").ended("failed", "gone")
    path.write_text(recorder.trace(question="q", outcome="failed", failure="it is gone", budget=3).to_json())
    text = printed(path)
    assert "broke     it is gone" in text and "no answer: it broke" in text and lanes(text)[0].startswith("◆✗")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.json", "does not exist: .* a run's folder, which `moonflow run --profile tiny` makes"),
        ("bad.json", "is no trace of a swarm episode"),
        (".", "is not a run's folder: make one with `moonflow run --profile tiny`"),
    ],
)
def test_what_is_no_trace_and_no_run_is_one_line(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(MoonflowError, match=told):
        printed(tmp_path / name)


@pytest.fixture
def run(tmp_path: Path, own_mlflow: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose MLflow is a file."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "profile.toml").touch()
    (folder / "arguments.json").write_text('{"p00_run_id": "r"}')

    @contextmanager
    def there(run_dir: Path) -> Iterator[dict[str, str]]:
        assert run_dir == folder
        yield {"MLFLOW_TRACKING_URI": own_mlflow, "MLFLOW_EXPERIMENT_NAME": "moonflow"}

    monkeypatch.setattr("pipelines.swarm_traces.visited", there)
    client = mlflow_runs.connect(own_mlflow)
    client.create_experiment("moonflow", artifact_location=f"file://{tmp_path}/artifacts")
    return folder


def test_the_traces_of_a_run_are_fetched_and_listed(run: Path, own_mlflow: str) -> None:
    client = mlflow_runs.connect(own_mlflow)
    for step, name in (("parl", "round-0006-best"), ("evaluate", "parl-wide_search_swarm-0")):
        made = mlflow_runs.of_step(client, "r", step, 0.0)
        client.log_text(made, recorded(2).to_json(), f"swarm/{name}.json")
        client.log_text(made, "<p>", f"swarm/{name}.html")
    text = printed(run)
    assert "parl-round-0006-best" in text and "5 of 12" in text and "wrote 2 pages and traces" in text
    found = sorted(path.name for path in (run / "swarm").iterdir())
    assert found == [
        "evaluate-parl-wide_search_swarm-0.html", "evaluate-parl-wide_search_swarm-0.json",
        "parl-round-0006-best.html", "parl-round-0006-best.json",
    ]  # fmt: skip
    assert Trace.from_json((run / "swarm" / "parl-round-0006-best.json").read_text()) == recorded(2)


def test_a_run_without_traces_is_one_line(run: Path) -> None:
    with pytest.raises(MoonflowError, match="has no traces"):
        printed(run)
