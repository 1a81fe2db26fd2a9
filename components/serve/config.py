"""Parameters of the serve check."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from components.prepare_data.families import PREPARED
from components.promote.names import Alias, Environment
from components.runtime.config import StepConfig
from model.errors import did_you_mean


def _about_one_image(family: str) -> str:
    """A family of held-out tasks that show one image each; else ValueError."""
    from model.data.families import FAMILIES  # the generators: only who names another family waits for them

    known = [name for name in PREPARED if (FAMILIES[name].kind, FAMILIES[name].modality) == ("task", "image")]
    if family not in known:
        raise ValueError(f"choose a family that asks about one image{did_you_mean(family, known)} ({', '.join(known)})")
    return family


class Config(StepConfig):
    # It asks a question; a second answer does no harm.
    repeatable: ClassVar[bool] = True

    environment: Environment = Field(
        "local", description="overlay of the GitOps repository to serve from (source: ours)"
    )
    model_name: str = Field(
        "moonflow", min_length=1, description="model name on the endpoint (source: ours)"
    )
    family: Annotated[str, AfterValidator(_about_one_image)] = Field(
        "digit_string", description="task family that the checked question comes from (source: ours)"
    )
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
    alias: Alias = Field("champion", description="registry alias that then moves to the served version (source: ours)")
