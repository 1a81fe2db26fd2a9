"""Parameters of the promote step."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import StepConfig


class Config(StepConfig):
    environment: str = Field("local", description="overlay of the GitOps repository to write to (source: ours)")
    model_name: str = Field("moonflow", description="name in the MLflow model registry (source: ours)")
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
