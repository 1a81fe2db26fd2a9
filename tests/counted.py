"""A step of the tests' own, ``components.counted``: it counts as the trainers train, and can be made to fail."""

from __future__ import annotations

import json
import random
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any

from pydantic import Field

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.config import StepConfig
from components.runtime.step import StepContext


class Config(StepConfig):
    steps: int = Field(4, description="optimizer steps (source: ours)")
    rate: float = Field(0.1, description="learning rate (source: ours)")


Stage = Callable[[Config, dict[str, str], StepContext], Manifest]


class Died(BaseException):
    """A step that ends without a chance to say so."""


def modules(run: Stage) -> dict[str, types.ModuleType]:
    """What ``run_step("counted")`` imports, by name, with ``run`` as the stage."""
    contents: dict[str, dict[str, Any]] = {
        "components.counted": {"__path__": []},
        "components.counted.config": {"Config": Config},
        "components.counted.stage": {"run": run},
    }
    made = {}
    for name, attributes in contents.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(attributes)
    return made


def install(run: Stage) -> None:
    """For a process of its own; tests in this process use the fixture ``define``."""
    sys.modules.update(modules(run))


def counting(dies_at: int | None = None, *, meanwhile: Callable[[int], None] | None = None, size: int = 0) -> Stage:
    """A stage in the trainers' form: it counts, saves each second step, and may die.

    ``meanwhile`` is called at each count; a checkpoint holds ``size`` bytes of weights, different in each.
    """

    def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
        start = 0
        if (latest := context.checkpoints.latest()) is not None:
            start = json.loads((latest / "training_state.json").read_text())["loop"]
        for done in range(start + 1, config.steps + 1):
            context.metrics.log({"loss/text": 1.0 / done}, done)
            context.progress.update(done, config.steps, loss=1.0 / done)
            if meanwhile is not None:
                meanwhile(done)
            if done == dies_at:
                raise Died
            if done % 2 == 0:
                folder = context.work / str(done)
                folder.mkdir()
                (folder / "training_state.json").write_text(json.dumps({"loop": done}))
                if size:
                    (folder / "weights.bin").write_bytes(random.Random(done).randbytes(size))
                context.checkpoints.prepare(
                    index=done // 2 - 1, tokens_seen=done * 1000, complete=done == config.steps
                ).publish(folder)
                shutil.rmtree(folder)
        return context.checkpoints.newest

    return run
