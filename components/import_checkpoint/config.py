"""Parameters of the step that imports a checkpoint."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from components.runtime.config import StepConfig
from components.runtime.store.address import Address, is_address
from model.boundary.errors import MoonflowError

HUB = "hf://"
LAID_OUT = "MOONFLOW_SOURCE_FOLDER"
"""Environment variable: the folder in which `moonflow run` has laid the checkpoint of another run, whose folder the
source names. Only that command can read such a folder, which holds an object store's own files."""
_REPOSITORY = re.compile(r"hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def _source(text: str) -> str:
    if text.startswith(HUB):
        if not _REPOSITORY.fullmatch(text):
            raise ValueError("a repository of the Hugging Face Hub is written hf://owner/name")
    elif is_address(text):
        try:
            Address.parse(text)
        except MoonflowError as error:
            raise ValueError(str(error)) from None
    elif "://" in text:
        raise ValueError("an address begins with s3://, file:// or hf://; anything else is a folder's path")
    return text


class Config(StepConfig):
    source: Annotated[str, AfterValidator(_source)] = Field(
        "",
        description="the checkpoint to start from: the s3:// or file:// address of a manifest, a step or a run of "
        "ours, of which the newest complete checkpoint is taken; a folder or s3:// prefix in Hugging Face's form, with "
        "config.json; hf://owner/name; in a local run also another run's folder, runs/tiny or runs/tiny/mid_train "
        "(source: ours)",
    )
    revision: str = Field(
        "", description="branch, tag or commit of an hf:// source; empty = its main branch (source: ours)"
    )

    @model_validator(mode="after")
    def _revision_of_a_repository(self) -> Self:
        if self.revision and not self.source.startswith(HUB):
            raise ValueError(f"revision {self.revision!r} is for hf:// sources only: leave it empty")
        return self
