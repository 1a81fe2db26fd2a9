"""Parameters of the promote step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from components.promote.names import Environment, Model
from components.runtime.config import StepConfig


class Config(StepConfig):
    # The same promotion again is the same export, version and commit; another one is another commit.
    repeatable: ClassVar[bool] = True

    environment: Environment = Field("local", description="overlay of the GitOps repository to write to (source: ours)")
    model_name: Model = Field("moonflow", description="name in the MLflow model registry (source: ours)")
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="routed experts of the export: as they are (full) or INT4 (int4), as the evaluation measured them "
        "(source: the released checkpoint; default ours)",
    )
    image_digest: str = Field(
        "",
        pattern="^(sha256:[0-9a-f]{64})?$",
        description="digest of the serving image to pin, sha256:...; empty leaves the overlay's (source: ours)",
    )
