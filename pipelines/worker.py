"""The process that drives kfp.local for one run: ``python -m pipelines.worker RUN_DIR``, started by pipelines.run.

It leads a process group that contains every step and whatever a step starts, so that one signal ends them all. When
the process that holds the run's lock ends, for whatever reason, the worker ends its group itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

LOCK = "lock"


def end_with_owner(run_dir: Path) -> None:
    """Kill this process group as soon as no process holds the lock of ``run_dir``."""

    def wait() -> None:
        with (run_dir / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    run_dir = Path(sys.argv[1])
    end_with_owner(run_dir)
    # kfp warns about an image without "python" in its name and about settings that a local run does not use.
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from kfp import components, local

    work = run_dir / "kfp"
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(work),
        workspace_root=str(work / "workspace"),
        raise_on_error=False,
    )
    arguments = json.loads((run_dir / "arguments.json").read_text())
    pipeline = components.load_component_from_file(str(run_dir / "pipeline.yaml"))
    pipeline(**arguments)


if __name__ == "__main__":
    main()
