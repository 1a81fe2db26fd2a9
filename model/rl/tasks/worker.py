"""The process of one task: it imports the user's code, makes prompts and judges answers (source: ours).

The code is the user's own and is trusted. The process is there so that what hangs or crashes can be ended.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.parent_process import end_with_parent
from model.data.samples.sample import Split
from model.rl.tasks.loading import about, load, told
from model.rl.tasks.prompt import as_sample, as_verdict
from model.rl.tasks.task import Prompt, TaskSample

KEPT = 256  # prompts, so that those of a round need not be made again for each answer (ours)
READY, DONE, FAILED = "ready", "done", "failed"


def serve(connection: Connection, name: str) -> None:
    """Answer requests until the other end is closed: ``(method, *arguments)`` -> ``(DONE, result)``, or ``(FAILED,
    line)``. The first message is ``(READY, About)``, or ``(FAILED, line)`` if there is no such task."""
    os.setpgid(0, 0)  # what the user's code starts ends with this process
    end_with_parent(whole_group=True)
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        worker = Worker(name)
        connection.send((READY, worker.about))
    except BaseException as error:  # the user's module may also exit
        line = str(error) if isinstance(error, MoonflowError) else f"{name}: it raises {told(error)}"
        connection.send((FAILED, line))
        return
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = (DONE, getattr(worker, method)(*arguments))
        except MoonflowError as error:
            answer = (FAILED, str(error))
        except BaseException as error:
            answer = (FAILED, f"{method} raises {told(error)}")
        connection.send(answer)


class Worker:
    """A task in its own process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._task = load(name)
        self.about = about(name, self._task)
        self._prompts: OrderedDict[tuple[int, Split, int], Prompt] = OrderedDict()

    def prompt(self, seed: int, split: Split, index: int) -> TaskSample:
        """The sample of a prompt."""
        return as_sample(self.name, self.about, self._prompt(seed, split, index), seed, split, index)

    def verify(self, seed: int, split: Split, index: int, response: str) -> dict[str, float]:
        """The verdict on the answer to a prompt: ``score`` and parts."""
        return as_verdict(self._task.verify(response, self._prompt(seed, split, index)))

    def _prompt(self, *place: Any) -> Prompt:
        if place not in self._prompts:
            self._prompts[place] = self._task.prompt(*place)
            if len(self._prompts) > KEPT:
                self._prompts.popitem(last=False)
        return self._prompts[place]
