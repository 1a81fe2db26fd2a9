"""The keys of servers. Each is in an environment variable, and in no parameter and no command line (source: ours)."""

from __future__ import annotations

import os

from model.boundary.errors import MoonflowError

ENGINE_KEY = "MOONFLOW_ENGINE_KEY"
"""The variable with the key of the servers that rollouts and evaluations are sampled from."""
JUDGE_KEY = "MOONFLOW_JUDGE_KEY"
"""The variable with the key of the server that judges: often another provider's, who must not see the other key."""


def key_in(variable: str) -> str:
    """The key that an environment variable holds; "" if it is not set.

    Raises:
        MoonflowError: no HTTP header can hold it.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise MoonflowError(f"{variable} has characters that no HTTP header can hold: set it to the server's key alone")
    return key
