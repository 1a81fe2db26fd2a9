"""Waits until Git names what the run promoted: at once without a forge, after the review with one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from components.release import gitops
from components.release.forge import Forge
from components.release.gitops import Promoted
from model.boundary.errors import MoonflowError
from model.train.protocol import Progress

POLL_S = 15.0


def promoted_as(
    repository: str, environment: str, record: Mapping[str, Any], timeout: float, progress: Progress
) -> Promoted:
    """What the environment serves, as soon as that is the promotion in ``record``, which the promote step wrote.

    Waits for a pull request. If other promotions are merged first, its branch is rebuilt so that it still merges.

    Args:
        timeout: seconds until an unmerged pull request ends the step. A later attempt goes on waiting.

    Raises:
        MoonflowError: the environment serves something else, or the pull request is closed or not merged in time.
    """
    began = time.monotonic()
    deadline = began + timeout
    request = record.get("pull_request", "")
    gone = told = False
    while True:
        digest = record["manifest_sha256"]
        promoted, merged = gitops.standing(repository, environment, record["promotion_id"], digest)
        if promoted is not None and promoted.manifest_sha256 == digest:
            return promoted
        if merged or not request:
            held = f"{promoted.uri} (commit {promoted.commit[:10]})" if promoted else "nothing"
            raise MoonflowError(
                f"{environment} now holds {held}, not what this run promoted; run promote again under a new run id if "
                "it should"
            )
        proposal = gitops.renew(repository, environment, record["branch"])
        if proposal is None and gone:  # twice: a forge may delete the branch just after the merge
            raise MoonflowError(f"{request} has lost its branch {record['branch']}: restore it to go on")
        gone = proposal is None
        if proposal is not None and (forge := Forge.from_env(repository)) is not None:
            found = forge.find(proposal.branch, proposal.commit)
            if found is not None and found.state == "closed":
                raise MoonflowError(f"{request} was closed without a merge: what this run promoted is not served")
        if time.monotonic() > deadline:
            raise MoonflowError(
                f"{request} is not merged after {timeout:g} s: merge it, then start the run again under the same run "
                "id; only this step is left to do"
            )
        if not told:
            print(f"serve: awaiting the merge of {request} for up to {timeout:g} s", flush=True)
        told = True
        progress.update(int(time.monotonic() - began), int(timeout) + 1)
        time.sleep(min(POLL_S, timeout))
