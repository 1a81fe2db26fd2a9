"""The shipped profiles, each compiled once a process: a compilation takes a second, and four files read its result."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.compile import compile_ir
from pipelines.profile import PROFILES, load_profile

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.toml"))

Json = dict[str, Any]


@cache
def compiled(name: str) -> tuple[Json, Json]:
    """(pipeline spec, platform spec) of a profile. Do not change them: copy first."""
    with tempfile.TemporaryDirectory() as folder:
        compile_ir(load_profile(name), Path(folder, "pipeline.yaml"))
        spec, platform = documents(Path(folder, "pipeline.yaml"))
    return spec, platform


def documents(path: Path) -> list[Json]:
    """What a YAML file holds, by the parser in C: the one in Python takes seconds for a pipeline."""
    return list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))


def tasks_of(spec: Json) -> dict[str, Json]:
    """Component tasks by step, from every DAG of the pipeline."""
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    return {
        name.replace("-", "_"): task
        for dag in dags
        for name, task in dag["tasks"].items()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }
