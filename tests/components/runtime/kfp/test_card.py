from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import mlflow
import pytest

from components.runtime.checkpoints.manifest import File
from components.runtime.kfp.card import run_card, step_card
from components.runtime.tracking.mlflow_runs import mlflow_link
from tests.published import manifest_of

MANIFEST = manifest_of(
    "parl", 2, "run-7", files=[File(name="model.safetensors", size=8, sha256="0" * 64)], tokens_seen=1234567,
    mlflow_run_id="abc123", git_commit="f" * 40,
    extra={"seconds": 61.25, "inputs": {"policy": "s3://b/run-7/joint_rl/1"}, "warnings": ["a|b\nc"]},
)  # fmt: skip


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.mlflow.svc:5000")
    monkeypatch.delenv("MLFLOW_PUBLIC_URI", raising=False)


def rows(card: str) -> dict[str, str]:
    """The table's rows; cells split where Markdown splits them."""
    lines = [line for line in card.splitlines() if line.startswith("| ")][1:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert all(len(row) == 2 for row in cells)
    return {name.strip(): value.strip() for name, value in cells}


def test_a_step_leads_to_its_mlflow_run_its_manifest_and_its_source() -> None:
    shown = rows(step_card(MANIFEST, kept=False))
    assert shown["MLflow run"] == "[abc123](http://mlflow.mlflow.svc:5000/#/runs/abc123)"
    assert shown["manifest"] == "`s3://b/run-7/parl/2/manifest.json`"
    assert shown["manifest sha256"] == f"`{MANIFEST.sha256}`"
    assert shown["git commit"] == f"`{'f' * 40}`"
    assert "s3://b/run-7/joint_rl/1" in shown["made from"]
    assert (shown["time"], shown["tokens"]) == ("61.2 s", "1,234,567")
    assert "kept" not in shown["finished"]
    assert "kept" in rows(step_card(MANIFEST, kept=True))["finished"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0 s"), (12.0, "12 s"), (192.0, "3 min 12 s"), (7500.0, "2 h 5 min")]
)
def test_a_trainjobs_time_in_the_queue_stands_before_the_time_it_ran(seconds: float, told: str) -> None:
    shown = rows(step_card(MANIFEST, kept=False, queued_s=seconds))
    names = list(shown)
    assert shown["queued"] == told and names.index("queued") + 1 == names.index("time")


def test_a_step_that_is_not_known_to_have_queued_has_no_such_row() -> None:
    assert "queued" not in rows(step_card(MANIFEST, kept=False))


def test_text_from_elsewhere_stays_in_its_cell() -> None:
    assert rows(step_card(MANIFEST, kept=False))["warnings"] == r"a\|b c"


def test_the_public_address_goes_before_the_one_the_steps_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PUBLIC_URI", "https://mlflow.example.org/")
    assert "(https://mlflow.example.org/#/runs/abc123)" in step_card(MANIFEST, kept=False)


@pytest.mark.parametrize("uri", ["", "file:///mlruns", "databricks"])
def test_no_link_without_a_web_address(uri: str) -> None:
    assert mlflow_link("abc123", {"MLFLOW_TRACKING_URI": uri}) == ""
    assert mlflow_link("", {"MLFLOW_TRACKING_URI": "http://mlflow"}) == ""


def test_a_run_that_mlflow_does_not_know_is_said_so() -> None:
    shown = rows(step_card(MANIFEST.model_copy(update={"mlflow_run_id": "", "git_commit": ""}), kept=False))
    assert "none" in shown["MLflow run"] and "git commit" not in shown


def test_the_runs_card_tells_how_it_ended() -> None:
    assert rows(run_card("run-7", "abc", "s3://x/report.html", ""))["ended"] == "well"
    failed = rows(run_card("run-7", "", "s3://x/report.html", "parl: the store is away"))
    assert failed["ended"] == "failed: parl: the store is away"
    assert failed["report"] == "`s3://x/report.html`"


def test_mlflows_ui_has_the_route_that_the_links_take() -> None:
    """The address of a run without its experiment, which the installed MLflow's own pages declare."""
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    assert any('"/runs/:runUuid"' in script.read_text() for script in scripts.glob("main.*.js"))


def test_a_steps_own_markdown_stands_below_the_card() -> None:
    decision = "**promote** s3://moonflow/run-7/parl/2\n"
    shown = step_card(MANIFEST.model_copy(update={"extra": {"markdown": decision}}), kept=False)
    assert shown.startswith("### parl of run run-7") and shown.endswith(f"|\n\n{decision}")


def drawing(card: str) -> tuple[str, ElementTree.Element]:
    """The words of the card's picture, and the picture."""
    ((words, data),) = re.findall(r"!\[([^]]*)\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", card)
    return words, ElementTree.fromstring(base64.b64decode(data))


def test_a_training_shows_its_loss_as_a_picture_that_needs_no_page() -> None:
    history = [{"step": float(n), "time": 1.0, "loss/text": 9.0, "loss/total": 3 / (n + 1)} for n in range(30)]
    words, svg = drawing(step_card(MANIFEST, kept=False, history=history))
    assert words == "loss/total by optimizer step"
    assert svg.tag == "{http://www.w3.org/2000/svg}svg" and svg.get("width") == "500"
    style = svg.find("{*}style")
    assert style is not None and "path{fill:none" in (style.text or ""), "a filled curve, and no page to say otherwise"
    assert "var(" not in ElementTree.tostring(svg).decode()
    assert len(svg.findall("{*}path")) == 1


def test_an_evaluation_shows_the_mean_score_from_stage_to_stage() -> None:
    rows = [{"step": step, "suite": suite, "value": value} for step, value in (("init", 0.1), ("sft", 0.3), ("rl", 0.7))
            for suite in ("a", "b")]  # fmt: skip
    words, _ = drawing(step_card(MANIFEST.model_copy(update={"extra": {"evals": rows}}), kept=False))
    assert words == "mean score by stage, init to rl"


FLAT = [{"step": 1.0, "lr": 1.0}, {"step": 2.0, "lr": 1.0}]
NOT_A_NUMBER = [{"step": 1.0, "loss": math.nan}, {"step": 2.0, "loss": math.nan}]


@pytest.mark.parametrize("history", [(), [{"step": 1.0, "loss": 2.0}], FLAT, NOT_A_NUMBER])
def test_without_two_numbers_there_is_no_picture(history: list[dict[str, float]]) -> None:
    assert "data:" not in step_card(MANIFEST, kept=False, history=history)


def test_a_card_holds_no_html_which_kubeflow_shows_as_text() -> None:
    two = {"inputs": {"a": "s3://b/1", "b": "s3://b/2"}, "warnings": ["one", "two"]}
    assert not re.search(r"<[a-z]", step_card(MANIFEST.model_copy(update={"extra": two}), kept=False))
