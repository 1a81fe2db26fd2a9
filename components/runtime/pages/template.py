"""HTML from template files (jinja2), in which every value is escaped.

A template lies next to the Python file that fills it. Templates extend, import or include others by their file names:
those of their own folder, of the folder above it, and of this one, where what all pages share lies.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.runtime.pages.numbers import duration, figure

SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> Markup:
    """The filled template, as text that other templates do not escape again.

    Raises jinja2's UndefinedError if the template uses a value that is not given.
    """
    return Markup(_environment(template.parent).get_template(template.name).render(values))


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, folder.parent, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(figure=figure, duration=duration)
    return environment
