"""Retries of a whole step, inside its pod, while a service that it needs is away.

An installed Kubeflow Pipelines 2.17 writes ``retryPolicy: OnError`` into every step. Under this policy Argo retries a
pod that was lost, but not a step that failed, and a compiled pipeline cannot choose another policy. So a step that
cannot reach a service waits in its own pod, which also holds its work so far.
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

from model.boundary.errors import Transient

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a step is retried.

    Source: ours. A node that takes over a store's volume needs about five minutes.

    Attributes:
        attempts: of the whole step; each continues from the last checkpoint.
        first_s, longest_s: seconds. The first pause is between half of ``first_s`` and all of it; each further attempt
            doubles it, up to ``longest_s``.
    """

    attempts: int = 8
    first_s: float = 15.0
    longest_s: float = 240.0


def retry(step: str, work: Callable[[], Result], policy: RetryPolicy | None = None) -> Result:
    """``work()``, retried while it raises Transient; in the pod of a cluster's run only.

    A local run (on a laptop, or in a notebook's pod) is not retried: its user sees the error and can act on it. Raises
    what the last attempt raised.
    """
    in_pod = os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("MOONFLOW_RUN_DIR")
    policy = policy or (RetryPolicy() if in_pod else RetryPolicy(attempts=1))

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        print(
            f"{step}: {error}\n{step}: attempt {state.attempt_number} of {policy.attempts}, the next in {pause:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def let_go(state: RetryCallState) -> None:
        # The error's traceback can form a reference cycle that keeps the failed attempt's model: two may not fit.
        if state.attempt_number > 1:
            gc.collect()

    attempts = Retrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(policy.attempts),
        wait=wait_exponential(policy.first_s / 2, policy.longest_s / 2)
        + wait_random_exponential(policy.first_s / 2, policy.longest_s / 2),
        before=let_go,
        before_sleep=tell,
        reraise=True,
    )
    return attempts(work)
