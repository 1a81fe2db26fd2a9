"""Which parameters ask for the work anew, which for its end only, and which for nothing; on a store in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.config import AT_THE_END, NO_EFFECT, StepConfig
from components.runtime.step import StepContext, complete_manifest, run_step
from components.runtime.steps import ALL_STEPS, config_class
from model.boundary.errors import MoonflowError
from tests.counted import Stage


class Scored(StepConfig):
    """A step of two halves: scores, which cost, and a judgement of them, which does not."""

    samples: int = Field(4, description="tasks")
    floor: float = Field(0.5, json_schema_extra=AT_THE_END, description="least score")
    workers: int = Field(1, json_schema_extra=NO_EFFECT, description="processes")


class Sent(StepConfig):
    repeatable: ClassVar[bool] = True

    address: str = Field("here", description="where to")


@pytest.fixture
def run_id(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "run")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path))
    return "run"


@pytest.fixture
def use(define: Callable[[Stage], None]) -> Callable[[type[StepConfig], Stage], None]:
    """Make a schema and a stage those of the step ``counted``."""

    def install(schema: type[StepConfig], run: Stage) -> None:
        define(run)
        sys.modules["components.counted.config"].Config = schema  # type: ignore[attr-defined]

    return install


def scoring(scored: list[int]) -> Stage:
    """A stage that notes in ``scored`` when it does the half that costs."""

    def run(config: Scored, inputs: dict[str, str], context: StepContext) -> Manifest:  # type: ignore[type-arg]
        scores = context.work / "scores.json"
        if (before := context.checkpoints.latest()) is not None:
            scores.write_bytes((before / "scores.json").read_bytes())
        else:
            scored.append(config.samples)
            scores.write_text(json.dumps({"score": 0.6}))
            context.publish(context.work, kind="evals", complete=False)
        if config.floor > 1:
            raise MoonflowError("a floor above 1")
        decision = json.loads(scores.read_text())["score"] >= config.floor
        return context.publish(context.work, kind="evals", extra={"decision": decision})

    return run  # type: ignore[return-value]


def test_what_a_step_makes_last_is_made_again_from_what_it_has_saved(
    run_id: str, use: Callable[[type[StepConfig], Stage], None]
) -> None:
    scored: list[int] = []
    use(Scored, scoring(scored))
    held = run_step("counted", {"floor": 0.7})
    assert held.extra["decision"] is False
    assert complete_manifest("counted", {"floor": 0.7}) == held and complete_manifest("counted", {"floor": 0.5}) is None
    let_through = run_step("counted", {"floor": 0.5})
    assert let_through.extra["decision"] is True and let_through.index == held.index + 1
    assert run_step("counted", {"floor": 0.5}) == let_through  # and the newest one stays
    assert scored == [4]


def test_a_step_that_failed_at_its_end_goes_on_with_the_corrected_value(
    run_id: str, use: Callable[[type[StepConfig], Stage], None]
) -> None:
    scored: list[int] = []
    use(Scored, scoring(scored))
    with pytest.raises(MoonflowError, match="a floor above 1"):
        run_step("counted", {"floor": 5.0})
    assert run_step("counted", {"floor": 0.5}).complete
    assert scored == [4]


def test_what_changes_nothing_of_the_output_does_nothing_again(
    run_id: str, use: Callable[[type[StepConfig], Stage], None]
) -> None:
    scored: list[int] = []
    use(Scored, scoring(scored))
    made = run_step("counted", {"workers": 1})
    assert run_step("counted", {"workers": 8}) == made and scored == [4]


def test_what_changes_the_work_is_still_refused_and_named(
    run_id: str, use: Callable[[type[StepConfig], Stage], None]
) -> None:
    use(Scored, scoring([]))
    run_step("counted", {})
    with pytest.raises(MoonflowError, match=r"other parameters \(samples 4 -> 8\): restore them or use a new run id"):
        run_step("counted", {"samples": 8, "floor": 0.1, "workers": 2})


def test_a_manifest_whose_digest_covers_every_field_still_counts(
    run_id: str, use: Callable[[type[StepConfig], Stage], None], tmp_path: Path
) -> None:
    """As an earlier version wrote it."""
    scored: list[int] = []
    use(Scored, scoring(scored))
    made = run_step("counted", {})
    (path,) = (tmp_path / "store").rglob(f"{made.index}/manifest.json")
    path.write_bytes(made.model_copy(update={"config_sha256": "0" * 64}).canonical())
    assert run_step("counted", {"workers": 3}).uri == made.uri and scored == [4]


def test_a_repeatable_step_makes_its_next_output_of_other_parameters_or_inputs(
    run_id: str, use: Callable[[type[StepConfig], Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(config: Sent, inputs: dict[str, str], context: StepContext) -> Manifest:  # type: ignore[type-arg]
        (context.work / "sent.json").write_text(json.dumps([config.address, inputs]))
        return context.publish(context.work, kind="promotion", extra={"to": config.address})

    use(Sent, send)  # type: ignore[arg-type]
    first = run_step("counted", {})
    second = run_step("counted", {"address": "there"})
    assert (first.extra["to"], first.index, second.extra["to"], second.index) == ("here", 0, "there", 1)
    assert run_step("counted", {"address": "there"}) == second
    third = run_step("counted", {"address": "there"}, {"of": first.uri})
    assert third.index == 2 and third.parents == (first.sha256,)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_mark_on_a_field_is_one_that_is_understood(step: str) -> None:
    known = (NO_EFFECT, AT_THE_END)
    for name, field in config_class(step).model_fields.items():
        assert field.json_schema_extra is None or field.json_schema_extra in known, name
