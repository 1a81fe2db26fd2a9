"""A repository of the Hugging Face Hub, its files fetched one at a time.

``HF_ENDPOINT`` and ``HF_TOKEN`` name a mirror and a user's token, as for Hugging Face's own tools.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.runtime.store.object_store import disk_errors
from model.boundary.errors import MoonflowError, Transient

ENDPOINT = "https://huggingface.co"


@dataclass
class Repository:
    """``model.checkpoint.importing.SourceFiles`` of one commit of a repository; what lies in folders is left out.

    Attributes:
        where: what an error calls it.
        name: owner/name.
        commit: the commit that the revision named when the import began; every file is of this one.
        published: name -> hex SHA-256 of the large files, for which the Hub tells it.
    """

    where: str
    name: str
    commit: str
    published: dict[str, str]
    files: tuple[str, ...]
    work: Path

    @classmethod
    def find(cls, name: str, revision: str, work: Path) -> Repository:
        """Look the repository up; MoonflowError if it is not there, or the Hub cannot be reached."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        where = f"hf://{name}" + (f" at {revision}" if revision else "")
        try:
            told = HfApi(endpoint=_endpoint()).model_info(name, revision=revision or None, files_metadata=True)
        except RepositoryNotFoundError:
            raise MoonflowError(
                f"import_checkpoint.source: {_endpoint()} has no repository {name}, or not for you: check the name; a "
                "gated or private one needs HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise MoonflowError(f"import_checkpoint.revision: hf://{name} has no revision {revision!r}") from None
        except Exception as error:  # of the client, its transport or its parser: all say that this source is not there
            told_by = f"{_endpoint()} ({_reason(error)})"
            raise MoonflowError(f"import_checkpoint.source: {where}: no answer from {told_by}; give a folder") from None
        plain = [each for each in told.siblings or () if "/" not in each.rfilename]
        large = {each.rfilename: str(each.lfs.sha256) for each in plain if each.lfs is not None}
        return cls(where, name, str(told.sha), large, tuple(sorted(each.rfilename for each in plain)), work)

    def names(self) -> list[str]:
        return list(self.files)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """A local copy of one file, removed afterwards. Transient if it cannot be fetched now; MoonflowError if it is
        not there, or not for this user."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

        try:
            with disk_errors(self.work):
                path = hf_hub_download(
                    self.name,
                    name,
                    revision=self.commit,
                    local_dir=self.work,
                    endpoint=_endpoint(),
                    force_download=True,
                )
        except MoonflowError:
            raise
        except Exception as error:
            both = (error, error.__cause__)  # the client may say of a refusal only that the file is not in its cache
            # A gated one, too, which lists its files for everybody.
            if any(isinstance(each, RepositoryNotFoundError) for each in both):
                raise MoonflowError(
                    f"import_checkpoint.source: {self.where}: {name} is not for you: accept the repository's terms at "
                    f"{_endpoint()}/{self.name}, and give the token of that account in HF_TOKEN"
                ) from None
            if any(isinstance(each, RemoteEntryNotFoundError) for each in both):
                raise MoonflowError(f"import_checkpoint.source: {self.where} has no {name}; name another") from None
            raise Transient(f"{self.where}: {name} cannot be fetched ({_reason(error)}); run again") from None
        try:
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")


def _reason(error: Exception) -> str:
    told = error.__cause__ or error  # "download failed" says less than what it was raised from
    return " ".join(f"{type(told).__name__} {told}".split())[:300]
