from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.finish.config import Config
from components.finish.gallery import folders
from components.finish.report import render
from components.finish.stage import run
from components.runtime.store.folder_store import FolderStore
from tests.components.eval_rows import eval_row
from tests.components.finish.page import Page
from tests.published import publish_output

STEPS = ["mid_train", "zero_vision_sft", "parl"]


def attempt(response: str = "", score: float = 0.0, ended: str = "answer", **more: Any) -> dict[str, Any]:
    return {"turns": [], "more": 0, "response": response, "ended": ended, "failure": "", "score": score, **more}


def card(*attempts: dict[str, Any], **task: Any) -> dict[str, Any]:
    told = {
        "key": "k", "question": "How many <i>?", "answer": "3", "pictures": ["AAAA"], "frames": 1, "shown": True,
        "problem": "",
    }  # fmt: skip
    return {**told, "attempts": dict(zip(STEPS, attempts, strict=False)), **task}


PROGRAM = [
    {"role": "calls", "tool": "ipython", "text": "print('<script>alert(1)</script>')"},
    {"role": "returns", "tool": "", "text": "<img src=x onerror=alert(2)>"},
]
GALLERY = {
    "steps": STEPS,
    "suites": {
        "image_program_image": [
            card(attempt("<b>7</b>"), attempt("3", 1.0, turns=PROGRAM, more=4), attempt("3", 1.0)),
            card(attempt(ended="length"), attempt("2", 0.25), pictures=["AAAA"] * 3, frames=8, shown=False),
            card(attempt(ended="failed", failure="f/k: gone"), pictures=[], frames=0, problem="no <picture>"),
        ]
    },
}


def label(step: str) -> str:
    return {"mid_train": "mid-train", "parl": "PARL"}.get(step, step)


def test_the_checkpoints_stand_side_by_side_with_signs() -> None:
    (folder,) = folders(GALLERY, label)
    assert folder.name == "image program image"
    assert folder.outcomes == {"before SFT (mid-train)": "✗✗✗", "after SFT": "✓≈", "final (PARL)": "✓"}
    outcomes = [[c.outcome.words if c.outcome else None for c in e.columns] for e in folder.examples]
    assert outcomes == [["wrong", "right", "right"], ["wrong", "0.25 of 1", None], ["wrong", None, None]]


@pytest.mark.parametrize(("steps", "titles"), [
    (["import_checkpoint", "zero_vision_sft"], ["before SFT (import_checkpoint)", "after SFT"]),
    (["init", "mid_train"], ["init", "final (mid-train)"]),
])  # fmt: skip
def test_checkpoints_are_called_what_they_are(steps: list[str], titles: list[str]) -> None:
    cards = [card() | {"attempts": {step: attempt("3", 1.0) for step in steps}}]
    (folder,) = folders({"steps": steps, "suites": {"chart": cards}}, label)
    assert list(folder.outcomes) == titles


def test_the_page_shows_it_escaped_and_without_scripts() -> None:
    text = render({}, {}, {"gallery": GALLERY})
    page = Page(text)
    told = " ".join(" ".join(page.texts).split())
    for expected in (
        "Gallery", "How many <i>?", "Right answer: 3", "before SFT (mid-train)", "✗ wrong <b>7</b>", "calls ipython",
        "print('<script>alert(1)</script>')", "returned <img src=x onerror=alert(2)>", "… and 4 more", "✓ right 3",
        "no answer: a turn was too long", "≈ 0.25 of 1", "first, middle and last of 8 frames; seen by programs only",
        "not asked", "no answer: the episode broke: f/k: gone", "The picture cannot be read: no <picture>",
    ):  # fmt: skip
        assert expected in told, expected
    assert "<script" not in text and "onerror=alert(2)>" not in text and "<b>7" not in text
    assert page.addresses == ["data:image/png;base64,AAAA"] * 4
    assert "Gallery" not in render({}, {}, {})


def test_an_address_of_a_picture_cannot_leave_its_attribute() -> None:
    gallery = {"steps": STEPS, "suites": {"chart": [card(pictures=['" onload="alert(1)'])]}}
    assert Page(render({}, {}, {"gallery": gallery})).addresses == ['data:image/png;base64," onload="alert(1)']


def test_every_kind_of_image_program_has_its_line() -> None:
    names = ("crop", "binarise", "count_objects", "read_bar")
    rows = [
        {"step": "parl", "suite": "image_program", "kind": kind, "value": n / 4, "tool_calls": 1.0, "n": n + 1}
        for n, kind in enumerate(names)
    ]
    rows.append({"step": "init", "suite": "image_program", "kind": "crop", "value": 0.0, "tool_calls": 0.25, "n": 4})
    summary = {"evals": [eval_row("init", "image_program", 0.1), eval_row("parl", "image_program", 0.4)]}
    told = " ".join(" ".join(Page(render(summary, {}, {"evaluate": {"kinds": rows}})).texts).split())
    told = told[told.index("Image programs by kind") :]
    assert "crop image program 0.00 0.25 · 4 0.00 1.00 · 1" in told
    for kind, figures in zip(names[1:], ("0.25 1.00 · 2", "0.50 1.00 · 3", "0.75 1.00 · 4"), strict=True):
        assert f"{kind.replace('_', ' ')} image program – {figures}" in told
    assert "by kind" not in render(summary, {}, {"evaluate": {}})


def test_the_report_reads_it_from_the_evaluations_files(tmp_path: Path) -> None:
    store = FolderStore(f"file://{tmp_path / 'store'}")

    def told(index: int, content: str) -> tuple[dict[str, Any], str]:
        folder = tmp_path / f"evals{index}"
        folder.mkdir()
        (folder / "gallery.json").write_text(content)
        extra = {"evals": [], "decision": "hold"}
        publish_output(store, folder, "r", "evaluate", index, kind="evals", extra=extra)
        run(Config(), store, "r", tmp_path, "")
        return json.loads((tmp_path / "events.json").read_text())["extra"], (tmp_path / "report.html").read_text()

    extra, page = told(0, json.dumps(GALLERY))
    assert extra["gallery"] == GALLERY and "before SFT (mid-train)" in page and not extra["warnings"]
    extra, page = told(1, "{")
    (warning,) = extra["warnings"]
    assert "gallery.json cannot be read" in warning and "gallery" not in extra and "before SFT" not in page
