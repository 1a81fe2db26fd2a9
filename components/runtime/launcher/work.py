"""The work of a launched process, passed to its worker in environment variables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from components.runtime.config import StepConfig
from components.runtime.steps import TRAINING_STEPS, config_class
from model.boundary.errors import MoonflowError
from model.parallel.layout import Layout

STEP, CONFIG, INPUTS, RUN_ID = "MOONFLOW_STEP", "MOONFLOW_CONFIG", "MOONFLOW_INPUTS", "MOONFLOW_RUN_ID"
LAYOUT = "MOONFLOW_LAYOUT"
WORKER = "components.runtime.launcher.worker"
GROUP = "components.runtime.launcher.group"

PARALLEL_STEPS = frozenset(TRAINING_STEPS)
"""Steps whose stage divides its work among ranks: those that train. A second rank of another step would repeat the same
work and compete for the same output."""


@dataclass(frozen=True)
class StepWork:
    """One step of one run."""

    run_id: str
    step: str
    config: StepConfig
    inputs: Mapping[str, str]
    layout: Layout = Layout()

    @classmethod
    def of(cls, step: str, config: Mapping[str, Any], inputs: Mapping[str, str], layout: Layout | None = None) -> Self:
        """The work of ``step`` in the run that MOONFLOW_RUN_ID names; MoonflowError for a bad parameter."""
        parsed = config_class(step).parse(config, f"step {step}")
        given = {name: uri for name, uri in sorted(inputs.items()) if uri}
        return cls(os.environ[RUN_ID], step, parsed, given, layout or Layout())

    @property
    def name(self) -> str:
        """The task's name in its run: the step's, unless a pipeline runs the step several times."""
        return self.config.task_name(self.step, self.config.model_dump())

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the worker reads."""
        return {
            RUN_ID: self.run_id,
            STEP: self.step,
            CONFIG: self.config.model_dump_json(),
            INPUTS: json.dumps(dict(self.inputs)),
            LAYOUT: json.dumps(asdict(self.layout)),
        }

    @property
    def sha256(self) -> str:
        """Hex digest of run, step, lineage and inputs: equal if a running job does this same work.

        The layout is left out: it changes how the work is divided, not what it is. So is what a step applies at its
        end: a job that ended with another value is started again and has only that left to do.
        """
        canonical = json.dumps([self.run_id, self.step, self.config.sha256, dict(self.inputs)], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def torchrun(*arguments: str) -> list[str]:
    """The command line of PyTorch's launcher around the worker."""
    return ["python", "-m", GROUP, *arguments, "-m", WORKER]


def require_parallel(ranks: Mapping[str, int]) -> None:
    """MoonflowError naming the steps that are to run as several ranks (step -> ranks) and cannot."""
    refused = {step: number for step, number in ranks.items() if number > 1 and step not in PARALLEL_STEPS}
    if refused:
        asked = ", ".join(f"{step} cannot run as {number} ranks" for step, number in refused.items())
        raise MoonflowError(
            f"{asked}: its stage works in one process and each rank would repeat the same work; set nodes = 1 and "
            f"processes = 1 in {', '.join(f'[task.{step}]' for step in refused)}"
        )
