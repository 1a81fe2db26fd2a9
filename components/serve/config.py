"""Parameters of the serve check."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from components.release.names import Alias, Environment
from components.runtime.config import EngineConfig
from model.boundary.errors import did_you_mean


def _about_one_image(family: str) -> str:
    """A family of held-out tasks that show one image each; else ValueError."""
    from model.data.families import FAMILIES  # imports the generators, which nothing else here needs

    known = [name for name, each in FAMILIES.items() if (each.kind, each.modality) == ("task", "image")]
    if family not in known:
        raise ValueError(f"choose a family that asks about one image{did_you_mean(family, known)} ({', '.join(known)})")
    return family


class Config(EngineConfig):
    # It asks a question; a second answer does no harm.
    repeatable: ClassVar[bool] = True

    environment: Environment = Field(
        "local", description="overlay of the GitOps repository that names the promoted model (source: ours)"
    )
    model_name: str = Field("moonflow", min_length=1, description="name of the model on the endpoint (source: ours)")
    family: Annotated[str, AfterValidator(_about_one_image)] = Field(
        "digit_string", description="task family of the question to ask, one that shows one image (source: ours)"
    )
    max_tokens: int = Field(16, ge=1, description="longest answer in tokens (source: ours)")
    endpoint: str = Field(
        "",
        pattern="^(https?://.*[^/])?$",
        description="address of the environment's OpenAI-compatible endpoint without /v1, for example "
        "http://moonflow-serve.moonflow-dev, asked after its sync; empty = ask a server in the task "
        "itself (source: ours)",
    )
    start_timeout: float = Field(
        120.0,
        gt=0,
        description="seconds to wait until the server is ready or the endpoint serves the promoted weights; the "
        "task holds its resources meanwhile (source: ours)",
    )
    merge_timeout: float = Field(
        1800.0,
        ge=0,
        description="seconds to wait until the promotion's pull request is merged; the task holds its resources "
        "meanwhile (source: ours)",
    )
    alias: Alias = Field("champion", description="registry alias that moves to the served version (source: ours)")

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if self.endpoint and self.endpoints:
            raise ValueError(
                "endpoint and endpoints are both given: endpoint is asked as users ask, each replica of endpoints by "
                "token ids; choose one"
            )
        return self
