"""Parameters of the serve check."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import StepConfig


class Config(StepConfig):
    environment: str = Field("local", description="overlay of the GitOps repository to serve from (source: ours)")
    model_name: str = Field("moonflow", description="model name on the endpoint (source: ours)")
    family: str = Field("digit_string", description="task family that the checked question comes from (source: ours)")
    max_tokens: int = Field(16, ge=1, description="longest answer in tokens (source: ours)")
    endpoint: str = Field(
        "",
        pattern="^(https?://.*[^/])?$",
        description="address of the environment's OpenAI-compatible endpoint, without /v1, that is asked once it has "
        "synced, e.g. http://moonflow-serve.moonflow-dev; empty asks a server in the task itself (source: ours)",
    )
    start_timeout: float = Field(
        120.0,
        gt=0,
        description="seconds until the server must be ready; with endpoint, until that answers from the promoted "
        "weights; the task holds its resources meanwhile (source: ours)",
    )
    merge_timeout: float = Field(
        1800.0,
        ge=0,
        description="seconds to wait for the merge of the promotion's pull request; the task holds its resources "
        "meanwhile (source: ours)",
    )
    alias: str = Field("champion", description="registry alias that then moves to the served version (source: ours)")
