"""Write components/<step>/README.md from the code: ``python -m pipelines.docs`` (``--check`` only compares)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from kfp.dsl.base_component import BaseComponent

from components.runtime.config import meaning
from components.runtime.interface import purpose as purpose_of
from components.steps import ALL_STEPS, config_class
from model.errors import MoonflowError

COMPONENTS = Path(__file__).resolve().parents[1] / "components"
WRITTEN_BY = "<!-- Written by `python -m pipelines.docs`; edit config.py, component.py or stage.py instead. -->"


def load_component(step: str) -> BaseComponent:
    """The KFP component of a step: ``components.<step>.component.<step>``."""
    return getattr(importlib.import_module(f"components.{step}.component"), step)


def render(step: str) -> str:
    """The README of one step as Markdown."""
    component = load_component(step)
    stage = importlib.util.find_spec(f"components.{step}.stage")
    fields = config_class(step).model_fields
    spec = component.component_spec
    purpose = purpose_of(component.python_func)  # type: ignore[attr-defined]
    inputs = [(n, i.type) for n, i in (spec.inputs or {}).items() if n not in fields and n != "run_id"]
    outputs = [(n, o.type) for n, o in (spec.outputs or {}).items()]

    lines = [WRITTEN_BY, "", f"# {step}", "", purpose, ""]
    lines += [f"The recipe is in [stage.py](stage.py).{'' if stage else ' (missing)'}", ""]
    lines += ["| input | type |", "|---|---|", *(f"| `{n}` | {_short(t)} |" for n, t in inputs), ""] if inputs else []
    lines += (
        ["| output | type |", "|---|---|", *(f"| `{n}` | {_short(t)} |" for n, t in outputs), ""] if outputs else []
    )
    if fields:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for name, field in fields.items():
            kind = getattr(field.annotation, "__name__", str(field.annotation))
            default = "required" if field.is_required() else f"`{field.default}`"
            lines.append(f"| `{name}` | {kind} | {default} | {meaning(field).replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def stale() -> list[Path]:
    """The READMEs that differ from what the code says."""
    paths = {step: COMPONENTS / step / "README.md" for step in ALL_STEPS}
    return [path for step, path in paths.items() if not path.is_file() or path.read_text() != render(step)]


def main() -> None:
    if "--check" in sys.argv[1:]:
        if found := stale():
            names = ", ".join(str(path.relative_to(COMPONENTS.parent)) for path in found)
            raise SystemExit(f"out of date: {names}; run python -m pipelines.docs")
        return
    if not COMPONENTS.is_dir():
        raise MoonflowError(f"{COMPONENTS} is not there; run this from a source checkout")
    for step in ALL_STEPS:
        (COMPONENTS / step / "README.md").write_text(render(step))


def _short(kind: object) -> str:
    return str(kind).removeprefix("system.").split("@")[0]


if __name__ == "__main__":
    main()
