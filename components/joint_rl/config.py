"""Parameters of joint RL."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from components.outcome_rl.config import OutcomeRLConfig
from components.runtime.store.address import Address
from model.boundary.errors import MoonflowError, did_you_mean
from model.data.samples.sample import MODALITIES
from model.rollout.keys import JUDGE_KEY

PARENT, SERVERS = "parent", ("http://", "https://")
_SERVER = re.compile(r"https?://[^\s@/?#]+(/[^\s@?#]*)?")


def _modalities(text: str) -> str:
    for name in text.split(","):
        if name not in MODALITIES:
            hint = did_you_mean(name, MODALITIES)
            raise ValueError(f"{name!r} is not a modality{hint}; write some of {','.join(MODALITIES)}, no blanks")
    return text


def _judge(text: str) -> str:
    if text in ("", PARENT) or _SERVER.fullmatch(text):
        return text
    if text.startswith(SERVERS):
        raise ValueError(f"a server's URL has no user, blank, query or fragment: set {JUDGE_KEY} to its key")
    try:
        Address.parse(text)
    except MoonflowError as error:
        raise ValueError(f"write {PARENT}, the URL of a server or a manifest's address ({error})") from None
    return text


class Config(OutcomeRLConfig):
    modalities: Annotated[str, AfterValidator(_modalities)] = Field(
        "text,image",
        description="modalities of the tasks, from text, image and video, with commas and no blanks between "
        "(source: ours)",
    )
    judge: Annotated[str, AfterValidator(_judge)] = Field(
        "",
        description="model that scores right answers to tasks with rubrics, on top of the verifiable reward: the "
        "s3:// or file:// address of a checkpoint's manifest; parent, the checkpoint that training starts from, as it "
        "is then; or the http:// or https:// URL of an OpenAI-compatible server, whose key is in MOONFLOW_JUDGE_KEY; "
        "empty = none; "
        "model/rl/judges/README.md says more (source: ours)",
    )
    judge_weight: float = Field(
        0.5, ge=0, le=10, description="weight of the judge's score, which is in 0 to 1 (source: ours)"
    )
    judge_rubrics: str = Field(
        "several",
        pattern="^(several|one)$",
        description="rubric of an episode: several, one of its task's alternatives, drawn by the episode's seed, or "
        "one, always the first, which a policy can farm (source: K2.5's alternative rubrics; the draw is ours)",
    )

    @model_validator(mode="after")
    def _something_to_ask(self) -> Self:
        if self.engine == "sglang" and self.modalities == "video":
            raise ValueError("modalities is 'video', which SGLang does not take for this model: use engine 'embedded'")
        return self
