"""One launcher for every step: in this process, as ranks on this node, or as a Kubeflow TrainJob."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import StepWork, require_parallel
from components.runtime.step import complete_manifest, run_step
from model.boundary.errors import MoonflowError

PLACEMENT = "MOONFLOW_PLACEMENT"


def launch(
    step: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    placement: Placement,
    queued: Callable[[float], object] = lambda _: None,
) -> Manifest:
    """Run ``step`` where ``placement`` says and return its complete manifest, read from the object store.

    Takes the environment of ``run_step``. A step that is complete under this run id starts nothing.
    ``queued`` is called with the seconds that a TrainJob waited until its first pod had a node, if they are known.

    Raises:
        MoonflowError: what ``run_step`` raises; a placement that the step cannot have; the reason why ranks or a
            TrainJob failed, in one line.
    """
    require_parallel({step: placement.ranks})
    if placement.launcher == "in-process":
        return run_step(step, config, inputs)
    if (earlier := complete_manifest(step, config, inputs)) is not None:
        return earlier
    work = StepWork.of(step, config, inputs, placement.layout)
    if placement.launcher == "ranks":
        from components.runtime.launcher import ranks

        ranks.run(work, placement.processes)
    else:
        from components.runtime.launcher import trainjob

        trainjob.run(work, placement, lambda: complete_manifest(step, config, inputs) is not None, queued=queued)
    made = complete_manifest(step, config, inputs)
    if made is None:
        raise MoonflowError(f"{step} ended without a complete manifest in the object store: look at its log, run again")
    return made


def placement_from_environment() -> Placement:
    """The placement in MOONFLOW_PLACEMENT (JSON, set on each task of a cluster's pipeline); absent: in-process."""
    text = os.environ.get(PLACEMENT, "")
    if not text:
        return Placement.parse({}, PLACEMENT)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise MoonflowError(f"{PLACEMENT} is not JSON ({error}): compile the pipeline again") from None
    return Placement.parse(values, PLACEMENT)
