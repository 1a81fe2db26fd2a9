from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from components.finish.report import render
from components.runtime.charts import figure, line_chart, smoothed, ticks

VOID = {"meta", "img", "br", "line"}


class Page(HTMLParser):
    """Tags balanced; collects texts, addresses and classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.classes: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.classes += [value or "" for name, value in attrs if name == "class"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def row(step: str, suite: str, value: float, n: int = 96):
    return {"step": step, "suite": suite, "ability": "knowledge", "modality": "image", "value": value,
            "stderr": math.sqrt(value * (1 - value) / n), "n": n}  # fmt: skip


SUMMARY = {
    "seconds": 531.0,
    "steps": [{"name": "joint_pretrain", "seconds": 190.0, "tokens_per_s": 7100.0}, {"name": "promote", "seconds": 2.0,
              "tokens_per_s": 0.0}],
    "evals": [row("init", "digit_string", 0.0), row("joint_pretrain", "digit_string", 0.9),
              row("parl", "digit_string", 0.5)],
    "promoted": {"version": "3", "manifest_sha256": "f" * 64, "commit": "0123456789abcdef"},
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
EVENTS = {
    "joint_pretrain": [
        {"step": i, "time": i * 0.1, "loss/text": 3.0 / (i + 1), "loss/vision": 2.0 / (i + 1)} for i in range(50)
    ],
    "parl": [
        {"step": i, "time": i, "reward/mean": i / 9, "swarm/parallelism": i / 3, "swarm/critical_steps": 8 - i / 3}
        for i in range(9)
    ],
}
EXTRA = {
    "run_id": "tiny-1", "profile": "tiny",
    "evaluate": {"decision": "promote", "reasons": ["digit_string 0.95 >= 0.9"], "chance": {"digit_string": 0.01},
                 "swarm": {"parl": {"wide_search_single": {"critical_steps": 8.0, "parallelism": 0.0},
                                    "wide_search_swarm": {"critical_steps": 4.0, "parallelism": 3.0}}}},
    "serve": {"question": "Which digits?", "answer": "371", "expected": "371", "image": "data:image/png;base64,AAAA"},
}  # fmt: skip


def test_a_whole_page_is_self_contained_and_well_formed():
    page = Page(render(SUMMARY, EVENTS, EXTRA))
    assert page.addresses == ["data:image/png;base64,AAAA"]
    text = " ".join(page.texts)
    for expected in ("tiny-1", "promoted", "in the serve task", "8 min 51 s", "0123456789", "Which digits?",
                     "right", "0.90", "2.00×", "joint: loss", "PARL: parallelism", "7,100 tok/s", "2.13.0",
                     "digit_string 0.95 >= 0.9"):  # fmt: skip
        assert expected in text, expected
    assert "http" not in text


def test_an_answer_of_the_synced_endpoint_is_told_as_such():
    page = Page(render(SUMMARY, EVENTS, EXTRA | {"serve": EXTRA["serve"] | {"endpoint_checked": True}}))
    assert "Asked over HTTP, at the synced endpoint" in page.texts


def test_a_cell_that_fell_is_marked_and_others_are_not():
    page = Page(render(SUMMARY, EVENTS, EXTRA))
    assert [c for c in page.classes if c.startswith("heat")] == [
        "heat",
        "heat",
        "heat worse lower",
    ] * 2  # matrix, suites
    better = SUMMARY | {"evals": [row("init", "digit_string", 0.5), row("parl", "digit_string", 0.6)]}
    assert not any("lower" in c for c in Page(render(better, EVENTS, EXTRA)).classes)


@pytest.mark.parametrize(("first", "last", "chance", "learned"), [
    (0.0, 0.5, 0.01, "yes"), (0.45, 0.5, 0.01, "no"), (0.0, 0.5, 0.48, "no"),
])  # fmt: skip
def test_learned_means_above_untrained_and_chance(first: float, last: float, chance: float, learned: str):
    summary = SUMMARY | {"evals": [row("init", "photo", first), row("parl", "photo", last)]}
    page = Page(render(summary, {}, {"evaluate": {"chance": {"photo": chance}}}))
    assert page.texts.count(learned) == 1


def test_a_run_that_failed_early_still_has_a_page():
    summary = {"seconds": 3.0, "steps": [], "evals": [], "promoted": None, "versions": {}}
    text = " ".join(Page(render(summary, {}, {"run_id": "r", "error": "joint_rl: <disk> is full"})).texts)
    assert "failed" in text and "joint_rl: <disk> is full" in text


def test_text_from_outside_is_escaped():
    extra = EXTRA | {"serve": {"question": "<script>alert(1)</script>", "answer": "1", "expected": "2"}}
    assert "<script>" not in render(SUMMARY, EVENTS, extra)


def test_a_held_back_run_says_why():
    extra = {"evaluate": {"decision": "hold", "reasons": ["digit_count 0.20 < 0.7"]}}
    text = " ".join(Page(render(SUMMARY | {"promoted": None}, {}, extra)).texts)
    assert "held back" in text and "digit_count 0.20 < 0.7" in text


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 350, [0, 100, 200, 300]), (-3, 7, [-2, 0, 2, 4, 6]), (5, 5, [5]),
])  # fmt: skip
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == expected


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.123"), (3400, "3,400"), (15200, "15.2k"), (2.1e6, "2.1M")])
def test_figures_are_short(value: float, text: str):
    assert figure(value) == text


def test_smoothing_keeps_a_straight_line():
    line = [(float(i), 2.0 * i) for i in range(200)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])


def test_a_chart_leaves_out_what_cannot_be_drawn():
    assert line_chart({"a": [(0, math.nan), (1, 1.0)]}, x_label="x", y_label="y") == ""
    assert line_chart({"a": [(0, 1.0), (1, 1.0)]}, x_label="x", y_label="y").count("<path") == 1
