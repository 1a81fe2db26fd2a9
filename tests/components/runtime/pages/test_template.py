"""Templates escape what they are given, and miss nothing silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from components.runtime.pages.template import render


def filled(folder: Path, template: str, **values: object) -> Markup:
    path = folder / f"{len(list(folder.iterdir()))}.html"
    path.write_text(template)
    return render(path, **values)


def test_values_are_escaped_and_rendered_parts_are_not(tmp_path: Path) -> None:
    assert filled(tmp_path, "<p>{{ text }}</p>", text="<b> & 'c'") == "<p>&lt;b&gt; &amp; &#39;c&#39;</p>"
    assert filled(tmp_path, "{{ part }}", part=filled(tmp_path, "<b>{{ x }}</b>", x="<")) == "<b>&lt;</b>"


def test_a_value_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        filled(tmp_path, "{{ title }}")


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    text = '{% from "parts.html" import bars %}{{ bars(rows, "s") }}'
    drawn = filled(tmp_path, text, rows=[("a", 10.0), ("<b>", 4.0)])
    assert "width:100.00%" in drawn and "width:40.00%" in drawn and "&lt;b&gt;" in drawn and "4 s" in drawn
