from __future__ import annotations

from pathlib import Path

import pytest

from components.outcome_rl.episodes import FOLDER, ROUNDS, EpisodePages, shown_rounds
from components.runtime.pages.rollouts import PAGE_BYTES, PICTURE_BYTES
from model.codec.chat import encode_turns
from model.codec.tokenizer import Tokenizer
from model.parallel.ranks import Ranks
from model.rl.environment import Episode, tool_result
from model.rl.groups import Group
from tests.corpus import small_tokenizer
from tests.rl.conftest import said
from tests.samples import PNG, make_episode, make_sample
from tests.step_services import FolderServices

HOSTILE = '</pre><script>alert(1)</script><img src="x" onerror="alert(2)">\u202e'
PATH = f"{FOLDER}/round-00001.html"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def page(tokenizer: Tokenizer, folder: Path, *groups: Group) -> str:
    services = FolderServices(folder)
    EpisodePages(services, tokenizer, 1)(1, groups)  # type: ignore[arg-type]
    return services.files[PATH]


def asked(**fields: object) -> object:
    content = [{"type": "image", "media": "png"}, {"type": "text", "text": HOSTILE}]
    return make_sample(messages=[{"role": "user", "content": content}], media={"png": PNG}, answer=HOSTILE, **fields)


def calling(tokenizer: Tokenizer) -> Episode:
    """A call, its result, and an answer."""
    call = said(tokenizer, calls=[("search", {"query": HOSTILE})])
    heard = encode_turns([tool_result("functions.search:0", HOSTILE)], tokenizer, 0)
    answer = said(tokenizer, HOSTILE)
    mask = [False, *([True] * len(call)), *([False] * len(heard)), *([True] * len(answer))]
    metrics = {"tool_calls": 1.0, HOSTILE: 0.5}
    return make_episode(input_ids=[1, *call, *heard, *answer], policy_mask=mask, reward=1.0, correct=True, turns=2,
                        metrics=metrics)  # fmt: skip


@pytest.mark.parametrize(
    ("iterations", "shown"), [(1, [1]), (4, [1, 2, 3, 4]), (20, [1, *range(2, 21, 2)]), (25, [1, *range(1, 26, 3)])]
)
def test_the_first_and_the_last_round_are_shown_and_some_between(iterations: int, shown: list[int]) -> None:
    assert shown_rounds(iterations) == sorted(set(shown)) and len(shown_rounds(iterations)) <= ROUNDS + 1


def test_a_page_shows_call_result_picture_and_figures_and_escapes_what_others_wrote(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = page(tokenizer, tmp_path, Group(asked(), [calling(tokenizer)], [0.25]))  # type: ignore[arg-type]
    assert "<script" not in text and "onerror=&#34;" in text and "\u202e" not in text
    assert text.count("&lt;/pre&gt;&lt;script&gt;") == 6, "prompt, right answer, argument, result, answer, a figure"
    assert "<img alt" in text and "data:image/png;base64," in text and text.count("<img") == 1
    assert "calls search" in text and "✓ right" in text and "<dt>advantage</dt><dd>0.25</dd>" in text
    assert "knowledge, image" in text and "http" not in text


def test_of_each_ability_and_modality_the_best_and_the_worst_are_shown(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def group(key: str, ability: str, *rewards: float) -> Group:
        task = make_sample(key=key, ability=ability, messages=[{"role": "user", "content": key}])
        played = [
            make_episode(reward=reward, correct=reward == 1.0, metrics={"tool_calls": reward * 8}) for reward in rewards
        ]
        return Group(task, played, [0.0] * len(played))

    text = page(
        tokenizer, tmp_path, group("a", "coding", 0.5, 0.25), group("b", "coding", 1.0, 1.0),
        group("c", "knowledge", 0.125, 0.125),
    )  # fmt: skip
    assert text.count("<details") == 3 and text.index("knowledge, image") < text.index("coding, image")
    assert text.index("task f/c") < text.index("task f/b") < text.index("task f/a") and "<dd>0.5</dd>" not in text


def test_a_page_stays_small_whatever_it_shows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = make_episode(input_ids=[1, *tokenizer.encode("<" * 400_000)], policy_mask=[False])
    long = make_episode(input_ids=long.input_ids, policy_mask=[False, *[True] * (len(long.input_ids) - 1)],
                        metrics={"tool_calls": 0.0})  # fmt: skip
    huge = make_sample(messages=[{"role": "user", "content": "&" * 10**6}],
                       media={"png": PNG + bytes(PICTURE_BYTES), "mp4": b"moov"})  # fmt: skip
    text = page(tokenizer, tmp_path, Group(huge, [long], [0.0]))
    assert len(text.encode()) <= PAGE_BYTES and text.count("not shown") == 2 and "<img" not in text


def test_other_rounds_and_other_ranks_show_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = FolderServices(tmp_path), FolderServices(tmp_path, ranks=Ranks(rank=1, world=2))
    groups = [Group(make_sample(), [make_episode(metrics={"tool_calls": 0.0})], [0.0])]
    EpisodePages(first, tokenizer, 40)(2, groups)  # type: ignore[arg-type]
    EpisodePages(second, tokenizer, 40)(1, groups)  # type: ignore[arg-type]
    assert first.files == second.files == {}
