from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app, main
from tests.pipelines.commands import moonflow


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--set", "joint_pretrain.step=1", "--dry-run"),
        ("run", "--set", "run.preset=tinny"),
        ("run", "--profile", "small"),
        ("submit",),
        ("submit", "--profile", "tinny", "--host", "http://127.0.0.1:9"),
        ("compile", "--profile", "mine.toml"),
        ("compile", "--output", "pipeline.json"),
        ("compile", "--output", "pipeline.txt"),
        ("compile", "--output", "pipeline"),
        ("compile", "--output", "nowhere/pipeline.yaml"),
        ("compile", "--output", ".", "--dry-run"),
        ("compile", "--kubernetes", "--namespace", "Team A"),
        ("compile", "--kubernetes", "--version", "V 1", "--dry-run"),
        ("run", "--set", "evaluate.floors=digit_strin=0.9", "--dry-run"),
        ("run", "--set", "vit_pretrain.learning_rate=inf"),
        ("report", "nowhere"),
        ("serve", "nowhere"),
        ("serve", "x" * 300),
        ("evaluate", "nowhere"),
        ("evaluate", "."),
        ("evaluate", "x" * 300),
        ("evaluate", "nowhere", "--suite", "fact_q"),
        ("evaluate", "nowhere", "--tasks", "1"),
        ("evaluate", "nowhere", "--engine", "nowhere"),
        ("evaluate", "s3://"),
        ("evaluate", "file://nowhere"),
        ("promote", "x" * 300),
        ("report", "x" * 300),
        ("clean", "x" * 300),
        ("doctor", "--run-dir", "x" * 300),
        ("data", "check", "x" * 300),
        ("plan", "--preset", "x" * 300),
        ("plan", "--preset", "k26"),
        ("plan", "--gpus", "0"),
        ("plan", "--gpus", "12", "--expert-parallel", "8"),
        ("plan", "--gpu-memory", "0"),
        ("plan", "--gpu-memory", "nan"),
        ("submit", "--host", "http://127.0.0.1:9", "--ca-cert", "x" * 300),
        ("run", "--run-dir", "x" * 300),
        ("seeds", "--profile", "fusion"),
        ("seeds", "--set", "joint_pretrain.step=1", "--dry-run"),
        ("seeds", "--show"),
        ("seeds", "--run-dir", "x" * 300),
        ("submit", "--profile", "tiny", "--run-id", "a'b", "--host", "http://127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, as none of them gets to work that needs one of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moonflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert ended.value.code == 2 and told.out == ""
    assert len(told.err.splitlines()) == 1 and told.err.startswith("moonflow: ")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line_of_the_program_too(tmp_path: Path) -> None:
    result = moonflow("run", "--profile", "tinny", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("moonflow: ")


def test_help_lists_every_command(tmp_path: Path) -> None:
    result = moonflow("--help", cwd=tmp_path)
    assert result.returncode == 0
    commands = (
        "run",
        "seeds",
        "compile",
        "submit",
        "promote",
        "report",
        "serve",
        "evaluate",
        "plan",
        "doctor",
        "clean",
    )
    for command in commands:
        assert command in result.stdout


def test_a_paragraph_of_a_commands_help_is_one_line_that_a_terminal_wraps() -> None:
    def helps(group: Any) -> Iterator[str]:
        for command in group.commands.values():
            yield from helps(command) if hasattr(command, "commands") else [command.help]

    found = list(helps(typer.main.get_command(app)))
    paragraphs = [paragraph for text in found for paragraph in text.split("\n\n")]
    assert len(paragraphs) > len(found) > 10
    assert not [paragraph for paragraph in paragraphs if "\n" in paragraph]


def test_dry_run_prints_the_resolved_profile_and_writes_nothing(tmp_path: Path) -> None:
    result = moonflow("run", "--profile", "tiny", "--set", "joint_pretrain.steps=11", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0
    table = result.stdout.split("[joint_pretrain]\n")[1].split("\n\n")[0]
    assert "steps = 11" in table.splitlines()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "told"), [("", "import_checkpoint.source is empty"), ("runs/none", "names runs/none, which is neither")]
)
def test_a_dry_run_warns_of_a_checkpoint_that_is_not_there(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("profile.toml", "arguments.json"):
        (begun / name).touch()
    given = ("run", "--profile", "post_train", "--set", f"import_checkpoint.source={source}", "--dry-run")
    for arguments, warned in ((given, True), ((*given, "--run-dir", "begun"), False)):
        monkeypatch.setattr(sys, "argv", ["moonflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert not ended.value.code and "[import_checkpoint]" in out
        assert (err.count("\n"), "moonflow: warning: this run cannot start" in err, told in err) == (warned,) * 3


def test_compile_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = moonflow("compile", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0 and "would write" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_kubernetes_objects_go_where_the_manifests_are_installed(tmp_path: Path) -> None:
    assert moonflow("compile", "--kubernetes", cwd=tmp_path).returncode == 0
    made = list(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    assert {each["metadata"]["namespace"] for each in made} == {"moonflow"}


RANKS = ("--set", "task.evaluate.launcher=ranks", "--set", "task.evaluate.processes=2")


def test_ranks_that_no_step_can_have_are_told_before_hours_of_work(tmp_path: Path) -> None:
    """A run would get to the step only after all those before it; a file may say what cannot be run yet."""
    refused = "evaluate cannot run as 2 ranks: "
    result = moonflow("run", *RANKS, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith(f"moonflow: {refused}")
    assert list(tmp_path.iterdir()) == []

    result = moonflow("compile", "--profile", "small", "--dry-run", *RANKS, cwd=tmp_path)
    assert result.returncode == 0 and "would write" in result.stdout
    ranks, programs = result.stderr.splitlines()
    assert "warning" in ranks and refused in ranks and "[task.evaluate]" in ranks
    assert programs.startswith(
        "moonflow: warning: evaluate runs programs that a model writes, in a pod that has the token"
    )
    assert moonflow("compile", "--profile", "small", "--dry-run", cwd=tmp_path).stderr == ""


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    result = moonflow("run", "--run-dir", "taken", cwd=tmp_path)
    assert result.returncode == 2
    assert "taken is a file; give another one" in result.stderr and "Traceback" not in result.stderr


def test_a_folder_inside_of_a_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("profile.toml", "arguments.json"):
        (tmp_path / "run" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    result = moonflow("run", "--run-dir", "run/tmp/mine", cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "inside another run's" in result.stderr and sorted(tmp_path.rglob("*")) == before


def test_clean_says_that_nothing_was_left_running(tmp_path: Path) -> None:
    for named in ((), ("nowhere",), ("nowhere", "--dry-run")):
        result = moonflow("clean", *named, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "") and result.stdout.startswith("nothing to stop: ")


def test_doctor_passes_or_says_how_to_fix(tmp_path: Path) -> None:
    result = moonflow("doctor", cwd=tmp_path)
    for name in ("python", "memory", "sandbox", "seccomp", "disk", "packages", "weed", "mlflow", "git"):
        assert name in result.stdout
    assert result.returncode == (1 if "fix first" in result.stdout else 0)


def test_doctor_names_what_is_missing_and_how_to_fix_it(tmp_path: Path) -> None:
    result = moonflow("doctor", cwd=tmp_path, PATH=str(tmp_path))
    assert result.returncode == 1
    assert "git (promotion)" in result.stdout.split("fix first: ")[1]
    assert "apt install git" in result.stdout
