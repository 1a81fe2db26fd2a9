"""A launched process: ``python -m components.runtime.launcher.worker``, in a pod of a TrainJob or as a rank on this
node.

It reads MOONFLOW_STEP, MOONFLOW_CONFIG (JSON), MOONFLOW_INPUTS (JSON, name -> URI), MOONFLOW_LAYOUT (JSON: what the
ranks divide), torchrun's variables and what ``run_step`` reads. Exit status 0: the step's complete manifest is in the
object store. ``REFUSED``: a MoonflowError that every further attempt would raise again; it ends the job at once (the
failure policies in manifests/base/training). 143: it was asked to end (SIGTERM) and saved what it could. 1: anything
else, such as a missing service or a bug; another attempt may succeed. A pod of one rank has waited for the service
first (``components.runtime.launcher.retry``). A MoonflowError is one line of stderr after ``ERROR_MARK``, by which the
launcher finds it among torchrun's own messages; a bug keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from components.runtime.launcher.signals import stop_on_sigterm
from components.runtime.launcher.work import CONFIG, INPUTS, LAYOUT, STEP, require_parallel
from model.boundary.errors import MoonflowError, Unavailable

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
        from components.runtime.launcher.retry import RetryPolicy, retry
        from components.runtime.step import run_step
        from model.parallel.layout import Layout
        from model.parallel.ranks import Ranks

        ranks = Ranks.join(Layout(**_table(LAYOUT)))
        # One of several ranks cannot begin the step again by itself: the whole group is started again.
        policy = RetryPolicy(attempts=1) if ranks.world > 1 else None
        made = retry(step, lambda: run_step(step, config, inputs, ranks), policy)
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
        raise MoonflowError(f"{name} is not a JSON object: {text[:200]!r}")
    return value


if __name__ == "__main__":
    main()
