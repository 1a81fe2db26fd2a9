"""Several ranks of a step on this node, by PyTorch's own launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence

from components.runtime.launcher.reasons import from_log
from components.runtime.launcher.signals import stop_on_sigterm
from components.runtime.launcher.work import StepWork, torchrun
from model.boundary.errors import MoonflowError

_STOP_S = 30.0  # for the ranks to end after SIGTERM; Kubernetes' default grace period
_KILL_S = 25  # after which torchrun kills its ranks; less than _STOP_S, or the ranks would outlive it


def run(work: StepWork, processes: int) -> None:
    """Run ``work`` as ``processes`` ranks; their output goes to stdout. MoonflowError with one line if a
    rank fails.

    SIGTERM and Ctrl-C end the ranks. They stay in our process group, so whatever ends the group ends them too.
    """
    command = torchrun("--standalone", f"--nproc-per-node={processes}")
    # The ranks divide the threads that one process would have; OpenMP takes a list too, of its nested levels.
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]) // processes)
    _run([sys.executable, *command[1:]], work, threads)


def _run(command: Sequence[str], work: StepWork, threads: int) -> None:
    tail: deque[str] = deque(maxlen=200)
    environment = (
        os.environ
        | work.environment
        | {
            "OMP_NUM_THREADS": str(threads),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_KILL_S),
        }
    )
    with (
        stop_on_sigterm(),
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                tail.append(line.rstrip("\n"))
                print(line, end="", flush=True)
            status = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if status:
        raise MoonflowError(f"{work.step}: its ranks ended with status {status}: {from_log(list(tail))}")
