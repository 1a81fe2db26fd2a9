"""A launched process: ``python -m components.runtime.worker``, in a pod of a TrainJob or as a rank on this node.

It reads MOONFLOW_STEP, MOONFLOW_CONFIG (JSON), MOONFLOW_INPUTS (JSON, name -> URI), MOONFLOW_LAYOUT (JSON: what the
ranks divide), torchrun's variables and what ``run_step`` reads. Exit status 0: the step's complete manifest is in the
object store. ``REFUSED``: a MoonflowError that each further attempt would meet again, which ends the job at once (the
failure policies in manifests/base/training). 143: it was asked to end (SIGTERM) and saved what it could. 1: anything
else, a missing service or a bug, which another attempt may not meet; a pod of one rank has waited for the service first
(``components.runtime.again``). A MoonflowError is one line of stderr after
``ERROR_MARK``, by which the launcher finds it above torchrun's own account; a bug keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from components.runtime.launcher.signals import stop_on_sigterm
from components.runtime.launcher.work import CONFIG, INPUTS, LAYOUT, STEP, require_parallel
from model.errors import MoonflowError, Unavailable

ERROR_MARK = "moonflow error: "
REFUSED = 65  # EX_DATAERR of sysexits.h: the input is at fault


def main() -> None:
    # Whoever follows the log wants each line when it is written, also where stdout is no terminal.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with stop_on_sigterm():  # in a container this is process 1, which would not heed the signal otherwise
        _work()


def _work() -> None:
    try:
        step = os.environ.get(STEP, "")
        if not step:
            raise MoonflowError(f"{STEP} is not set: the worker is started by components.runtime.launcher, not by hand")
        require_parallel({step: int(os.environ.get("WORLD_SIZE", "1"))})
        config, inputs = _table(CONFIG), _table(INPUTS)
        from components.runtime.again import Bound, again
        from components.runtime.step import run_step
        from model.train.layout import Layout
        from model.train.ranks import Ranks

        ranks = Ranks.join(Layout(**_table(LAYOUT)))
        # One of several ranks cannot go back to the step's beginning by itself: the group is started anew.
        bound = Bound(attempts=1) if ranks.world > 1 else None
        made = again(step, lambda: run_step(step, config, inputs, ranks), bound)
    except MoonflowError as error:
        print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, Unavailable) else REFUSED)
    print(f"{step}: complete, {made.uri}", flush=True)


def _table(name: str) -> dict[str, Any]:
    text = os.environ.get(name, "{}")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise MoonflowError(f"{name} is no JSON object: {text[:200]!r}")
    return value


if __name__ == "__main__":
    main()
