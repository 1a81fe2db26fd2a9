"""What a manifest says of the checkpoint that a model was trained from."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.runtime.checkpoints.manifest import ORIGIN, Manifest
from model.boundary.errors import MoonflowError

_Text = Annotated[str, Field(max_length=4096)]  # of a path or an address (ours)


class Origin(BaseModel):
    """An imported checkpoint.

    Attributes:
        source: as the run was given it.
        revision: the commit of a repository, or the address at which a manifest was read; "" for a folder.
        sha256: hex digest of the manifest, or of the names and digests of the files that were read.
        licences: names of the licence files, which the model has among its own.
        before: the origin of that checkpoint itself; None if it has none.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    source: _Text
    revision: _Text = ""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    licences: tuple[_Text, ...] = ()
    before: Origin | None = Field(None, alias="from")

    @classmethod
    def of(cls, manifest: Manifest, where: str) -> Self | None:
        """The origin that a manifest states, which others may have written; None if it states none.

        MoonflowError, naming ``where``, when it is not in this form.
        """
        if not (stated := manifest.extra.get(ORIGIN)):
            return None
        try:
            return cls.model_validate(stated)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, (ORIGIN, *first["loc"])))[:200]
            raise MoonflowError(
                f"import_checkpoint.source: the manifest at {where} is not of ours ({field}: {first['msg']}); name "
                "another checkpoint"
            ) from None

    def stated(self) -> dict[str, Any]:
        """As a manifest has it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
