"""What the pages of all ablations share."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from components.ablation import page
from components.ablation.claim import Claim
from components.ablation.tables import Table
from tests.components.finish.page import Page

FOLDER = Path(page.__file__).parent
CLAIM = Claim("more is better", 3, True, "+2.0")
TABLES = [Table("Scores", ["arm", "score"], [["<more>", "3"]]), Table("Nothing", ["arm"], [])]
CHARTS = [("Reward", "of <all>", Markup("<svg></svg>")), ("Length", "no curve", "")]


@pytest.mark.parametrize("name", ["rl", "sft", "swarm", "toggle"])
def test_a_page_says_each_finding_once_and_leaves_out_what_is_empty(name: str) -> None:
    text = page.render_page(
        FOLDER / name / f"{name}.html",
        {},
        claims=[CLAIM],
        tables=TABLES,
        charts=CHARTS,
        sentences=["an arm", str(CLAIM)],
    )
    told = " ".join(Page(text).texts)
    assert "run: " in told and "<more>" in told and "Nothing" not in told
    assert told.count("more is better") == 1 and "an arm" in told and '<strong class="yes">holds</strong>' in text
    assert text.count("<svg>") == (name != "sft") and "Length" not in told


def test_the_page_of_a_swarm_draws_before_its_tables() -> None:
    at = {
        name: text.index("<svg>") < text.index("Scores")
        for name in ("swarm", "rl")
        if (text := page.render_page(FOLDER / name / f"{name}.html", {}, tables=TABLES, charts=CHARTS, sentences=[]))
    }
    assert at == {"swarm": True, "rl": False}
