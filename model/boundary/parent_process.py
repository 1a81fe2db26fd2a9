"""A child process that ``multiprocessing`` started ends with its parent.

Three other kinds of processes end with their parent by other means:

- Sessions of the sandbox (``model.rl.tools.isolation.die_with``) run programs that are not trusted, which could stop a
  watching thread. The kernel's death signal (PR_SET_PDEATHSIG) needs no thread.
- A run's services (``pipelines/services/supervisor.py``) are programs of others, in which no thread of ours can run.
  They too get the death signal; their supervisor uses the standard library alone, so it cannot import ``die_with``.
- The serving engine (``components.serve.engine_worker``) reads its socket in a thread anyway: the socket's end tells it
  that the server is gone, also when the server only closes it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def end_with_parent(whole_group: bool = False) -> None:
    """Call it in the child: from then on it ends as soon as its parent does, even when SIGKILL ends the parent.

    Args:
        whole_group: end the child's process group, which it leads, with all that the child has started.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        if whole_group:
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
