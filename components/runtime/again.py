"""A step's own repetition of what fails by itself and passes by itself.

Kubeflow Pipelines 2.17 as it is installed writes ``retryPolicy: OnError`` into every step, under which Argo repeats a
pod that was lost, not a step that failed; what a pipeline is compiled to cannot name another policy. So a step that
finds a service away goes on waiting inside of its pod, where its work so far is.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random_exponential,
)

from model.errors import Transient

Result = TypeVar("Result")


@dataclass(frozen=True)
class Bound:
    """How often and how long (source: ours: a node that takes over a store's volume needs some five minutes).

    Attributes:
        attempts: of the whole step; each goes on from its last checkpoint.
        first_s, longest_s: the pause before the next attempt is between half of ``first_s`` and all of it, doubled for
            each attempt so far up to ``longest_s``.
    """

    attempts: int = 8
    first_s: float = 15.0
    longest_s: float = 240.0


def again(step: str, work: Callable[[], Result], bound: Bound | None = None) -> Result:
    """``work()``, repeated while a service that it needs is away; in a run's pod only.

    Raises what the last attempt raised. In a local run, on a laptop or in a notebook's pod, nobody is served by
    waiting: whoever runs it reads the line.
    """
    in_pod = os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("MOONFLOW_RUN_DIR")
    bound = bound or (Bound() if in_pod else Bound(attempts=1))

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        print(
            f"{step}: {error}\n{step}: attempt {state.attempt_number} of {bound.attempts}, the next in {pause:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def let_go(state: RetryCallState) -> None:
        # An error kept by what raised it keeps the failed attempt's model, too: two would not fit into memory.
        if state.attempt_number > 1:
            gc.collect()

    attempts = Retrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(bound.attempts),
        wait=wait_exponential(bound.first_s / 2, bound.longest_s / 2)
        + wait_random_exponential(bound.first_s / 2, bound.longest_s / 2),
        before=let_go,
        before_sleep=tell,
        reraise=True,
    )
    return attempts(work)
