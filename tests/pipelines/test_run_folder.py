"""The run's folder: any printable name works or is refused in one line before anything is written."""

from __future__ import annotations

import multiprocessing.connection
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from model.boundary.errors import MoonflowError
from pipelines import progress, result
from pipelines.run import run_lock
from pipelines.run_folder import resume_command, run_folder, temporary_folder

ODD = ["a b", "a,b", "what?", "50%20", "a#b", "it's", 'say "no"', "$HOME", "a;b", "[bold]x", "M\u00fcnchen \u6708"]


@pytest.mark.parametrize("name", ODD)
def test_the_printed_command_names_the_folder_as_a_shell_reads_it(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / name)
    command = resume_command(folder, "--keep")
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    profile = str(tmp_path / name / "profile.toml")
    assert words.stdout.splitlines() == [
        "moonflow", "run", "--profile", profile, "--run-dir", str(tmp_path / name), "--keep"
    ]  # fmt: skip
    assert shlex.split(command)[0] == "moonflow"


@pytest.mark.parametrize("name", ODD)
def test_what_is_printed_holds_the_folders_name_as_it_is(name: str, tmp_path: Path) -> None:
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(progress.progress_table(tmp_path / name, time.monotonic(), ["parl"]))
    (tmp_path / name).mkdir()
    (tmp_path / name / "profile.toml").touch()
    with pytest.raises(MoonflowError, match=r"summary.json does not exist: finish the run with moonflow run") as caught:
        result.render_report(tmp_path / name, tmp_path / "report.html")
    assert f"moonflow run {name}," in console.export_text()
    assert shlex.quote(str(tmp_path / name)) in str(caught.value) or "--run-dir" in str(caught.value)


def test_a_report_of_no_run_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="is not a run's folder: make one with `moonflow run --profile tiny`"):
        result.render_report(tmp_path / "tiny", tmp_path / "report.html")


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "esc\x1b[31m", os.fsdecode(b"latin-\xfc")])
def test_a_name_that_cannot_be_printed_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="cannot be printed") as caught:
        run_folder(tmp_path / name)
    str(caught.value).encode()
    assert str(caught.value).isprintable() and not (tmp_path / name).exists()


def test_a_place_that_cannot_hold_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for place, told in [
        ("file", "is a file"),
        ("file/below", "file is a file"),
        ("x" * 300, "name too long"),
        ("link", "circle|symbolic links"),
    ]:
        with pytest.raises(MoonflowError, match=told) as caught:
            run_folder(tmp_path / place)
        assert "give another one" in str(caught.value) and len(str(caught.value)) < 600


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(MoonflowError, match="cannot write to .*: Is a directory; make room"), run_lock(tmp_path):
        pass


def test_sockets_find_room_below_the_temporary_folder_of_a_deep_run(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with temporary_folder(deep) as temporary:
        (temporary / "large").write_text("on the run's own disk")
        assert (deep / "tmp" / "large").is_file()
        address = temporary / ("s" * 32)
        with multiprocessing.connection.Listener(str(address), "AF_UNIX"):
            assert address.is_socket()
    assert not (deep / "tmp").exists() and not temporary.exists() and not temporary.parent.exists()
    with temporary_folder(tmp_path / "short") as near:
        assert near == tmp_path / "short" / "tmp" or near.is_symlink()


def test_a_lock_is_waited_for_by_a_clock_that_is_never_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600 * time.monotonic())  # it runs backwards
        began = time.monotonic()
        with pytest.raises(MoonflowError, match="in use"), run_lock(tmp_path):
            pass
        assert time.monotonic() - began < 10
    finally:
        holder.kill()
        holder.communicate()
