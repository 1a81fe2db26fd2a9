"""The command ``moonflow evaluate`` in this process, and a checkpoint that always answers the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from tests.pipelines.evaluation.command import Run
from tests.scripted import write_scripted

TWO = ("</think>", "2", "<|im_end|>")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that answers "2"."""
    return write_scripted(tmp_path_factory.mktemp("two") / "checkpoint", TWO)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moonflow", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


@pytest.fixture
def scored(run: Run) -> Callable[..., dict[str, Any]]:
    """The command's JSON object, its last line."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    return call
