"""What is in force after changes of every kind, in real repositories: the overlay's content decides."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components.release import gitops, history
from components.release.git import clone
from components.release.history import History
from components.release.overlay import NONE, NOTHING, Change
from model.boundary.errors import MoonflowError

FILE = "overlays/prod/kustomization.yaml"


def digest(letter: str) -> str:
    return letter * 64


def text(letter: str, tuned: str = "") -> str:
    """An overlay that serves a checkpoint, "" for nothing."""
    uri, sha256 = (f"s3://b/{letter}", digest(letter)) if letter else (NONE, NONE)
    return (
        f"# A comment.\n{tuned}\nconfigMapGenerator:\n- name: checkpoint\n  literals:\n  - CHECKPOINT_URI={uri}\n"
        f"  - CHECKPOINT_SHA256={sha256}\n  - KFP_RUN_ID=none\n  - MLFLOW_RUN_ID=none\n"
    )


class Repository:
    """A repository as colleagues and forges change it: with a work tree, and Git at hand."""

    def __init__(self, path: Path, begins: str = "") -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "receive.denyCurrentBranch", "updateInstead")
        self.commit("Begin", begins)

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.editor=true"]
        done = subprocess.run(["git", *identity, *arguments], cwd=self.path, input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(errors="replace").strip()

    def commit(self, message: str, letter: str, tuned: str = "") -> str:
        return self.commit_text(message, text(letter, tuned))

    def commit_text(self, message: str, content: str | bytes) -> str:
        (self.path / FILE).parent.mkdir(parents=True, exist_ok=True)
        (self.path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "--file=-", stdin=message.encode())
        return self.head()

    def promote(self, letter: str, run: str = "run", **given: str) -> str:
        message = f"Promote {letter}\n\nScores.\n\nPromotion-Id: prod/{run}/{digest(letter)}\n"
        return self.commit(message, letter, **given)

    def merged(self, branch: str, message: str, *how: str) -> str:
        """A branch merged into main as a forge does it."""
        self.git("checkout", "--quiet", "main")
        self.git("merge", "--quiet", "--no-ff", "-m", message, *how, branch)
        return self.head()

    def branch(self, name: str) -> None:
        self.git("checkout", "--quiet", "-b", name, "main")

    def revert(self, *arguments: str) -> str:
        self.git("revert", "--no-edit", *arguments)
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def past(self) -> History:
        self.git("checkout", "--quiet", "main")
        return gitops.read_history(str(self.path), "prod")

    def standing(self) -> str:
        """The letters that rollbacks go back through, "-" for nothing; in brackets if a rollback came last."""
        past = self.past()
        letters = "".join(entry.after.uri.removeprefix("s3://b/").replace(NONE, "-") for entry in past.standing)
        assert past.served == past.standing[-1].after
        return f"({letters})" if past.rollback else letters


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "gitops")


def test_promotions_stand_upon_each_other(repository: Repository):
    assert repository.standing() == "-" and repository.past().in_force is None
    commits = [repository.promote(letter) for letter in "abc"]
    past = repository.past()
    assert repository.standing() == "-abc"
    assert past.in_force == past.last == past.standing[-1] == past.entries[0]
    assert [entry.commit for entry in past.entries[:3]] == commits[::-1]
    assert [entry.kind for entry in past.entries] == ["promotion"] * 3 + ["other"]
    assert past.made(f"prod/run/{digest('a')}", digest("a")) == commits[0]


def test_a_revert_is_one_whatever_its_message_says(repository: Repository):
    for number, message in enumerate((
        "Revert \"Promote b\"\n\nThis reverts commit {commit}.\n",
        "Revert \"Promote b\"\n\nThis reverts commit {commit}, reversing\nchanges made to {commit}.\n",
        "Revert \"Promote b (#2)\" (#3)\n\nReverts platform/gitops#2\n",
        "Revert \"Promote b\"\n\nThis reverts merge request !12\n\n(cherry picked from commit {commit})\n",
        "revert: reference {commit:.7} (Promote b, 2026-01-01)\n",
        "back, in the night\n",
        "\n",
    )):  # fmt: skip
        if number == 0:
            repository.promote("a")
        promoted = repository.promote("b", run=f"run-{number}")
        assert repository.standing() == "-ab"
        repository.commit(message.format(commit=promoted), "a")
        assert repository.standing() == "(-a)", message


def test_reverts_of_reverts(repository: Repository):
    repository.promote("a")
    second = repository.promote("b")
    first_revert = repository.revert(second)
    assert repository.standing() == "(-a)"
    again = repository.revert(first_revert)
    past = repository.past()
    assert repository.standing() == "-ab" and past.in_force is not None and past.in_force.commit == again
    third = repository.revert(again)
    assert repository.standing() == "(-a)" and repository.past().rollback.commit == third  # type: ignore[union-attr]
    repository.revert(third)
    assert repository.standing() == "-ab"
    gitops.revert(str(repository.path), "prod", repository.past().in_force)  # type: ignore[arg-type]
    assert repository.standing() == "(-a)"


@pytest.mark.parametrize("how", ["merge", "squash", "rebase"])
def test_pull_requests_are_known_as_what_they_bring(repository: Repository, how: str):
    repository.promote("a")
    repository.branch("promote/prod/b")
    proposed = repository.promote("b")
    repository.git("checkout", "--quiet", "main")
    repository.commit("Tune\n", "a", tuned="# meanwhile")
    if how == "merge":
        made = repository.merged("promote/prod/b", "Merge pull request #1 from platform/promote\n\nPromote b")
        shown = proposed
    elif how == "squash":
        repository.git("merge", "--quiet", "--squash", "promote/prod/b")
        body = f"Promote b (#1)\r\n\r\nPromotion-Id: prod/run/{digest('b')}\r\n\r\nCo-authored-by: c <c@d>\r\n"
        made = shown = repository.commit(body, "b", tuned="# meanwhile")
    else:
        repository.git("cherry-pick", "promote/prod/b")
        made = shown = repository.head()
    past = repository.past()
    assert repository.standing() == "-ab" and past.last.commit == shown and past.last.subject.startswith("Promote b")
    assert past.made(f"prod/run/{digest('b')}", digest("b")) == shown
    # The forge's button: a branch whose commit takes the merge back, merged in turn.
    repository.branch("revert-1")
    repository.revert(*(("-m", "1", made) if how == "merge" else (made,)))
    repository.merged("revert-1", 'Merge pull request #2 from platform/revert-1\n\nRevert "Promote b"')
    past = repository.past()
    assert repository.standing() == "(-a)" and past.last.subject.startswith("Revert ")
    # And the button on that request: the promotion is there again.
    repository.branch("revert-2")
    repository.revert(past.last.commit)
    repository.merged("revert-2", "Merge pull request #3 from platform/revert-2")
    assert repository.standing() == "-ab"


@pytest.mark.parametrize("directly", [True, False])
def test_what_a_merge_brought_is_rolled_back(repository: Repository, directly: bool):
    """By its one commit where there is one; else as a whole."""
    repository.promote("a")
    repository.branch("promote/prod/b")
    if not directly:
        repository.commit("Half of it\n", "c")
    proposed = repository.promote("b")
    if not directly:
        repository.revert(proposed)
        repository.promote("b", run="again")
    merge = repository.merged("promote/prod/b", "Merge #1")
    force = repository.past().in_force
    assert force is not None
    assert (force.commit, force.merge) == ((proposed, False) if directly else (merge, True))
    assert force.undo == f"git revert {'' if directly else '-m 1 '}{force.commit[:12]}"
    gitops.revert(str(repository.path), "prod", force)
    assert repository.standing() == "(-a)"


def test_a_merge_that_settled_a_conflict_is_rolled_back_to_what_was_there(repository: Repository):
    repository.promote("a")
    repository.branch("promote/prod/b")
    repository.promote("b")
    repository.git("checkout", "--quiet", "main")
    repository.promote("c")
    merge = repository.merged("promote/prod/b", "Merge #1", "--strategy-option=theirs")
    force = repository.past().in_force
    assert repository.standing() == "-acb" and force is not None and (force.commit, force.merge) == (merge, True)
    gitops.revert(str(repository.path), "prod", force)
    assert repository.standing() == "(-ac)"


def test_a_merge_that_kept_the_others_state_promotes_nothing_but_was_made(repository: Repository):
    repository.promote("a")
    repository.branch("promote/prod/b")
    proposed = repository.promote("b")
    repository.git("checkout", "--quiet", "main")
    repository.promote("c")
    repository.merged("promote/prod/b", "Merge #1", "--strategy=ours")
    past = repository.past()
    assert repository.standing() == "-ac"
    assert past.made(f"prod/run/{digest('b')}", digest("b")) == proposed


def test_an_earlier_checkpoint_promoted_anew_is_no_rollback(repository: Repository):
    first, _ = repository.promote("a"), repository.promote("b")
    repository.promote("a", run="run-2")
    assert repository.standing() == "-aba"
    past = repository.past()
    assert past.made(f"prod/run/{digest('a')}", digest("a")) == first
    gitops.revert(str(repository.path), "prod", past.in_force)  # type: ignore[arg-type]
    assert repository.standing() == "(-ab)"
    # The same by a merge whose own message says nothing.
    repository.branch("promote/prod/a")
    repository.promote("a", run="run-3")
    repository.merged("promote/prod/a", "Merge #7")
    assert repository.standing() == "-aba"


@pytest.mark.parametrize("quoted", [
    "Back to a\n\nPromotion-Id: prod/run/{a}\n",  # the id of a's own promotion, quoted
    "Back to a\n\n> Promotion-Id: prod/new/{a}\n",
    "Back to a, see Promotion-Id: prod/new/{a}\n",
    "Back to a\n\nx\x1ePromotion-Id: prod/new/{a}\n",
    "Back to a\n\nx\x0bPromotion-Id: prod/new/{a}\x0c\n",
    "Back to a\n\nx\u2028Promotion-Id: prod/new/{a}\x85\n",
    "Back to a\n\nPromotion-Id: dev/new/{a}\n",
    "Back to a\n\nPromotion-Id: prod/new/{a}2\n",
    "Back to a\n\nPromotion-Id: prod/new/{b}\n",
    "Back to a\n\nPromotion-Id:prod/new/{a}\n",
])  # fmt: skip
def test_a_quoted_promotion_is_none(repository: Repository, quoted: str):
    repository.promote("a")
    repository.promote("b")
    repository.commit(quoted.format(a=digest("a"), b=digest("b")), "a")
    assert repository.standing() == "(-a)"


def test_a_promotion_is_found_by_its_whole_name_and_its_digest(repository: Repository):
    repository.promote("a", run="v12")
    repository.commit(f"Tune\n\nPromotion-Id: prod/v1/{digest('a')}\nPromotion-Id: prod/v2/{digest('b')}\n", "a", "# x")
    repository.commit(f"Hand-made\n\nNot this:\nPromotion-Id: prod/v3/{digest('b')}\n", "c")
    past = repository.past()
    for run in ("v", "v1", "12", "v123", ".*"):
        assert past.made(f"prod/{run}/{digest('a')}", digest("a")) == ""
    assert past.made(f"prod/v2/{digest('b')}", digest("b")) == past.made(f"prod/v3/{digest('b')}", digest("b")) == ""
    # So a retry under such a name promotes.
    change = Change("s3://b/b", digest("b"))
    made = gitops.promote(str(repository.path), "prod", change, "Promote b\n", f"prod/v2/{digest('b')}")
    assert gitops.read_history(str(repository.path), "prod").last.commit == made.commit


def test_control_characters_and_foreign_bytes_in_messages_change_nothing(repository: Repository):
    repository.promote("a")
    fake = f"{'0' * 40}\x00{'1' * 40}\x00Promote z\x00Promotion-Id: prod/z/{digest('z')}\n"
    repository.commit(f"Tune \x1e\x1f\x1b[2J\r\n\n\x1e{'0' * 40}\x01\n", "a", tuned="# 1")
    repository.commit_text("latin", text("a", "# 2"))
    raw = repository.git("cat-file", "commit", "HEAD").encode().replace(b"latin", b"caf\xe9\xff")
    tree, parents = raw.partition(b"\n")[0], repository.head().encode()
    head = tree + b"\nparent " + parents + b"\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n"
    repository.commit("Tune\n", "a", tuned="# 3")
    for extra in (b"\ncaf\xe9\xff\n", b"encoding latin1\n\ncaf\xe9\n", f"\nNUL \x00{fake}".encode()):
        commit = repository.git("hash-object", "-w", "-t", "commit", "--literally", "--stdin", stdin=head + extra)
        repository.git("merge", "--quiet", "--strategy=ours", "-m", "Merge", commit)
    past = repository.past()
    assert repository.standing() == "-a" and past.made(f"prod/z/{digest('z')}", digest("z")) == ""
    assert all(entry.subject.isprintable() for entry in past.entries)


def test_an_overlay_that_was_broken_for_a_while_said_what_it_said_before(repository: Repository):
    repository.promote("a")
    for broken in ("<<<<<<< HEAD\n", b"\xff\xfe", "[" * 1000, "x" * 300_000, text("b").replace("- name", "- nom")):
        repository.commit_text("Break\n", broken)
        with pytest.raises(MoonflowError, match="overlays/prod/kustomization.yaml in the GitOps repository"):
            repository.past()
        repository.commit_text("Mend\n", text("a"))
    (repository.path / FILE).unlink()
    (repository.path / FILE).symlink_to("../../somewhere")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "-m", "Link")
    (repository.path / FILE).unlink()
    repository.promote("b")
    assert repository.standing() == "-ab"


def test_how_an_overlay_began_is_not_rolled_back(tmp_path: Path):
    """The commit that brought it may have brought the whole platform."""
    repository = Repository(tmp_path / "gitops", begins="a")
    assert repository.standing() == "a" and repository.past().in_force is None
    repository.promote("b")
    gitops.revert(str(repository.path), "prod", repository.past().in_force)  # type: ignore[arg-type]
    assert repository.standing() == "(a)" and repository.past().in_force is None
    # Removed and put back: a new beginning.
    repository.git("rm", "--quiet", FILE)
    repository.git("commit", "--quiet", "-m", "Remove")
    with pytest.raises(MoonflowError, match="has no overlay 'prod'"):
        repository.past()
    repository.promote("c")
    assert repository.standing() == "c"


def test_changes_by_hand_count(repository: Repository):
    repository.commit("Put a there\n", "a")
    repository.promote("b")
    assert repository.standing() == "-ab"
    repository.commit("Nothing for now\n", "")
    past = repository.past()
    assert repository.standing() == "(-)" and past.served == NOTHING
    assert gitops.find_promoted(str(repository.path), "prod") is None
    repository.promote("c")
    for number in range(3):
        repository.commit("Tune\n", "c", tuned=f"# {number}")
    assert repository.standing() == "-c" and repository.past().last.subject == "Promote c"


def test_a_rollback_that_git_cannot_make_pushes_nothing(repository: Repository):
    repository.promote("a")
    repository.promote("b")
    content = text("b").replace("  - KFP_RUN_ID=none\n", "  - OWN=1\n  - KFP_RUN_ID=none\n")
    head = repository.commit_text("Tune beside it\n", content)
    force = repository.past().in_force
    assert force is not None
    with pytest.raises(MoonflowError, match=f"git revert {force.commit[:10]} conflicts with later changes of prod"):
        gitops.revert(str(repository.path), "prod", force)
    assert repository.head() == head


def test_a_branch_with_another_content_is_not_taken_for_the_proposal(repository: Repository):
    """Whoever may push may use the branch's name first."""
    name = f"promote/prod/{digest('b')[:12]}"
    repository.branch(name)
    squatter = repository.promote("e")
    repository.git("checkout", "--quiet", "main")
    change = Change("s3://b/b", digest("b"))
    made = gitops.promote(str(repository.path), "prod", change, "Promote b\n", "prod/run/b", review=True)
    assert made.branch == name and made.commit != squatter
    assert f"CHECKPOINT_SHA256={digest('b')}" in repository.git("show", f"{name}:{FILE}")


def test_a_long_history_takes_four_calls_of_git(repository: Repository, monkeypatch: pytest.MonkeyPatch):
    for number in range(30):
        repository.promote("ab"[number % 2], run=f"run-{number}")
    with clone(str(repository.path)) as folder:
        calls = []
        real = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
        assert len(history.read(folder, "prod").standing) == 31
        assert len(calls) == 4


@pytest.mark.parametrize("link", ["overlays", "overlays/prod", FILE])
def test_a_committed_symlink_leads_nowhere(repository: Repository, tmp_path: Path, link: str):
    repository.promote("a")
    outside = tmp_path / "outside"
    (repository.path / link).rename(outside)
    (repository.path / link).symlink_to(outside)
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "-m", "Link")
    file = outside / FILE.removeprefix(link).lstrip("/") if link != FILE else outside
    before = file.read_bytes()
    for use in (
        lambda: gitops.promote(str(repository.path), "prod", Change("s3://b/b", digest("b")), "Promote b", "prod/r/b"),
        lambda: gitops.find_promoted(str(repository.path), "prod"),
    ):
        with pytest.raises(MoonflowError, match=f"{link} in the GitOps repository is a symbolic link"):
            use()
    assert file.read_bytes() == before


def test_an_overlay_in_a_submodule_is_none(repository: Repository, tmp_path: Path):
    other = Repository(tmp_path / "other")
    repository.git("rm", "-r", "--quiet", "overlays")
    url = str(other.path / ".git")
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, "overlays")
    repository.git("commit", "--quiet", "-m", "Elsewhere")
    with pytest.raises(MoonflowError, match="has no overlay 'prod'; it has: none"):
        gitops.find_promoted(str(repository.path), "prod")
