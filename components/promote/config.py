"""Parameters of the promote step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from components.release.names import Environment, Model
from components.runtime.config import StepConfig


class Config(StepConfig):
    # To promote the same again gives the same export, version and commit; to promote something else, another commit.
    repeatable: ClassVar[bool] = True

    environment: Environment = Field(
        "local", description="overlay of the GitOps repository that the promotion changes (source: ours)"
    )
    model_name: Model = Field("moonflow", description="name of the model in the MLflow registry (source: ours)")
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the exported routed experts: full, as they are, or int4; it must be the one that "
        "evaluate measured (source: the released checkpoint; default ours)",
    )
    image_digest: str = Field(
        "",
        pattern="^(sha256:[0-9a-f]{64})?$",
        description="digest of the serving image to pin, sha256:...; empty = the overlay keeps its own (source: ours)",
    )
