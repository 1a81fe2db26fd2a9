"""Pull requests over REST, on GitHub or Gitea (source: their API references; both have what is used here).

A forge's answers are not trusted: no redirect is followed, since it would take the token along, and its messages are
shown in one line without the token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import httpx

from components.release.git import BRANCH, REPOSITORY, TOKEN, checked, is_remote, one_line, token, without_token
from model.boundary.errors import MoonflowError, Transient

FORGE = "MOONFLOW_FORGE"
"""Environment variable: ``github`` or ``gitea``; unset = no forge, promotions go to the main branch."""
Kind = Literal["github", "gitea"]
State = Literal["open", "merged", "closed"]
_TIMEOUT_S = 30.0
_TRIES = 3
_PAGE = 50
_PAGES = 200  # ours: the newest 10,000 pull requests; a forge that repeats its pages ends too


@dataclass(frozen=True)
class PullRequest:
    """``state``: open, merged, or closed without a merge."""

    number: int
    url: str
    state: State


class Forge:
    """The pull requests of one repository."""

    def __init__(self, kind: Kind, repository: str) -> None:
        """``repository`` is its Git address: ``https://HOST/OWNER/NAME.git``.

        MoonflowError when it is another kind of address, or when there is no token.
        """
        if not (secret := token()):
            raise MoonflowError(f"{FORGE} is {kind}, but {TOKEN} is not set: give a token that may open pull requests")
        root, owner, name = _parts(repository)
        api = {"gitea": f"{root}/api/v1", "github": f"{root}/api/v3"}[kind]
        if root == "https://github.com":
            api = "https://api.github.com"
        self._owner = owner
        self._pulls = f"{api}/repos/{owner}/{name}/pulls"
        self._kind = kind
        self._headers = {"Authorization": f"token {secret}", "Accept": "application/json"}

    @classmethod
    def from_env(cls, repository: str) -> Forge | None:
        """The forge that MOONFLOW_FORGE names; None if it is not set, or if the repository is a folder."""
        kind = os.environ.get(FORGE, "")
        if not kind or not is_remote(repository):
            return None
        if kind not in get_args(Kind):
            raise MoonflowError(f"{FORGE} is {kind!r}: write {' or '.join(get_args(Kind))}, or leave it out")
        return cls(kind, repository)  # type: ignore[arg-type]

    def ensure(self, branch: str, commit: str, title: str, body: str) -> PullRequest:
        """The pull request of ``branch``, at ``commit``, into the main branch; opened if there is none.

        Raises:
            MoonflowError: the forge is away or refuses, or the pull request was closed without a merge.
        """
        if (found := self.find(branch, commit)) is None:
            new = {"title": title, "head": branch, "base": BRANCH, "body": body}
            answer = self._request("POST", json=new)
            if answer.status_code == 201:
                with self._understood():
                    return _pull_request(answer.json())
            # Somebody else opened it meanwhile: GitHub says so with 422, Gitea with 409.
            if answer.status_code not in (409, 422) or (found := self.find(branch, commit)) is None:
                raise self._refusal("opening a pull request", answer)
        if found.state == "closed":
            raise MoonflowError(f"{found.url} was closed without a merge: reopen it to let this change through")
        return found

    def find(self, branch: str, commit: str) -> PullRequest | None:
        """The open pull request of ``branch``, or the one that ended with ``commit``; earlier ones do not count."""
        for page in range(1, _PAGES + 1):
            query: dict[str, str | int] = {"state": "all", "page": page}
            query |= {"per_page": _PAGE} if self._kind == "github" else {"limit": _PAGE}
            query |= {"head": f"{self._owner}:{branch}", "base": BRANCH} if self._kind == "github" else {}
            answer = self._request("GET", params=query)
            if answer.status_code != 200:
                raise self._refusal("listing pull requests", answer)
            with self._understood():
                if not isinstance(entries := answer.json(), list):
                    raise TypeError
                for entry in entries:  # newest first in both
                    ours = entry["head"]["ref"] == branch and entry["base"]["ref"] == BRANCH
                    if ours and (entry["state"] == "open" or entry["head"]["sha"] == commit):
                        return _pull_request(entry)
            if len(entries) < _PAGE:
                return None
        raise MoonflowError(
            f"none of the first {_PAGES * _PAGE} pull requests of {self._pulls} is that of {branch}: open it by hand"
        )

    def _request(self, method: str, **options: Any) -> httpx.Response:
        """One request; connections that fail and 5xx are tried again. Opening twice is harmless: see ``ensure``."""
        for attempt in range(1, _TRIES + 1):
            try:
                answer = httpx.request(
                    method,
                    self._pulls,
                    headers=self._headers,
                    timeout=_TIMEOUT_S,
                    follow_redirects=False,
                    **options,
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if attempt == _TRIES:
                    raise (MoonflowError if isinstance(error, httpx.InvalidURL) else Transient)(
                        f"the forge at {self._pulls} cannot be reached ({type(error).__name__}): check {FORGE} and "
                        f"{REPOSITORY}"
                    ) from None
            else:
                if answer.status_code < 500 or attempt == _TRIES:
                    return answer
            time.sleep(attempt)
        raise AssertionError("unreachable")

    def _refusal(self, doing: str, answer: httpx.Response) -> MoonflowError:
        said = one_line(without_token(answer.text))[:200]
        hint = f": check {TOKEN}" if answer.status_code in (401, 403, 404) else ""
        if answer.is_redirect:
            hint = f": it redirects, which is not followed; write the address that it leads to in {REPOSITORY}"
        kind = Transient if answer.status_code >= 500 else MoonflowError
        return kind(f"{doing} at {self._pulls} was refused ({answer.status_code} {said}){hint}")

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise MoonflowError(
                f"{self._pulls} answered something else than pull requests: check {FORGE} and {REPOSITORY}"
            ) from None


def _parts(repository: str) -> tuple[str, str, str]:
    """(the forge's root, owner, name) of a repository's Git address."""
    parts = urlsplit(checked(repository))
    *prefix, owner, name = ["", "", *parts.path.removesuffix(".git").strip("/").split("/")]
    if not (parts.scheme in ("http", "https") and parts.hostname and owner and name):
        raise MoonflowError(
            f"{REPOSITORY} is {repository}: a forge's repository is https://HOST/OWNER/NAME, with the token in {TOKEN}"
        )
    return "/".join([f"{parts.scheme}://{parts.netloc}", *filter(None, prefix)]), owner, name


def _pull_request(entry: Mapping[str, Any]) -> PullRequest:
    merged = bool(entry.get("merged") or entry.get("merged_at"))
    states: dict[str, State] = {"open": "open", "closed": "closed"}
    state = "merged" if merged else states[entry["state"]]
    return PullRequest(int(entry["number"]), one_line(str(entry["html_url"])), state)
