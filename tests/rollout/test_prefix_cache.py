"""The kept prefixes against a plain search, their bound, and what the key of a prompt with media says."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from model.rollout.prefix_cache import Key, PrefixCache, common, key_of
from model.rollout.protocol import Request
from tests.drawn import PAD, pixels

MERGE = (2, 2)


def latents_of(key: Key) -> torch.Tensor:
    """[1, 2, T]: what a token's latents are follows from all tokens up to it."""
    return torch.tensor([[[hash(key[: n + 1]) % 9973, n] for n in range(len(key))]], dtype=torch.float32).mT


def found(cache: PrefixCache, key: Key) -> int:
    """How many tokens are found; their latents must be those of the key."""
    runs = cache.find(key)
    if not runs:
        return 0
    latents = torch.cat(runs, dim=2)
    assert torch.equal(latents, latents_of(key)[..., : latents.shape[2]])
    return latents.shape[2]


def drawn(draw: random.Random, kept: list[Key]) -> Key:
    """A sequence that often begins like one before."""
    beginning = draw.choice(kept)[: draw.randint(0, 30)] if kept and draw.random() < 0.8 else ()
    return (*beginning, *draw.choices(range(3), k=draw.randint(1, 20)))


def test_what_is_found_is_the_longest_beginning_that_was_kept() -> None:
    draw, cache, kept = random.Random(0), PrefixCache(100_000), []
    for _ in range(400):
        key = drawn(draw, kept)
        assert found(cache, key) == max((common(key[:-1], each) for each in kept), default=0)
        cache.keep(key, latents_of(key))
        kept.append(key)
    assert cache.size == len({key[: n + 1] for key in kept for n in range(len(key))})  # what is shared counts once
    cache.clear()
    assert cache.size == 0 and not cache.find(kept[0])


def test_no_more_tokens_are_kept_than_allowed_and_the_newest_stay() -> None:
    draw, cache, kept = random.Random(1), PrefixCache(120), []
    for _ in range(400):
        key = drawn(draw, kept[-3:])
        cache.keep(key, latents_of(key))
        kept.append(key)
        assert cache.size <= 120
        assert found(cache, (*key, 7)) == len(key)


def test_what_was_found_last_stays_longest() -> None:
    cache = PrefixCache(100)
    first, second = tuple(range(40)), tuple(range(100, 140))
    for key in (first, second):
        cache.keep(key, latents_of(key))
    assert found(cache, first) == 39
    third = tuple(range(200, 240))
    cache.keep(third, latents_of(third))
    assert (found(cache, first), found(cache, second), found(cache, third)) == (39, 0, 39)


def test_a_sequence_longer_than_the_bound_is_not_kept_and_pushes_nothing_out() -> None:
    cache, short, long = PrefixCache(30), tuple(range(20)), tuple(range(50, 90))
    for key in (short, long):
        cache.keep(key, latents_of(key))
    assert (found(cache, short), found(cache, long)) == (19, 0)


def test_what_is_kept_is_a_copy() -> None:
    cache, key = PrefixCache(100), tuple(range(10))
    latents = latents_of(key)
    cache.keep(key, latents)
    latents.zero_()
    assert found(cache, key) == 9


def picture(seed: int, tail: list[int]) -> Request:
    """One medium of two tokens and one of six, then text."""
    grids = [(1, 2, 4), (4, 4, 6)]
    return Request([5, PAD, PAD, 7, *[PAD] * 6, *tail], pixels(grids, seed), grids)


def test_the_key_of_a_prompt_tells_media_by_their_pixels_and_text_by_its_ids() -> None:
    key = key_of(picture(0, [1, 2]), PAD, MERGE)
    assert key == key_of(picture(0, [1, 2]), PAD, MERGE) and len(key) == 12
    assert [n for n, token in enumerate(key) if token < 0] == [1, 2, *range(4, 10)]
    assert common(key, key_of(picture(0, [1, 3]), PAD, MERGE)) == 11
    assert common(key, key_of(picture(1, [1, 2]), PAD, MERGE)) == 1
    other = picture(0, [1, 2])
    other.pixel_values[-1, 0, 0, 0] += 1e-3  # in the second medium alone
    assert common(key, key_of(other, PAD, MERGE)) == 4
    # Pixels in another order of frames, rows and columns are another medium.
    turned = replace(picture(0, [1, 2]), grid_thws=[(1, 4, 2), (4, 4, 6)])
    assert common(key, key_of(turned, PAD, MERGE)) == 1
    assert key_of(Request([3, 4]), PAD, MERGE) == (3, 4)


def test_a_medium_is_found_whole_or_not_at_all() -> None:
    cache = PrefixCache(1000)
    ends_in_medium = replace(picture(0, []), max_new_tokens=1)
    key = key_of(ends_in_medium, PAD, MERGE)
    cache.keep(key, latents_of(key))
    assert found(cache, key) == 4  # its last token is to be read, and so is the medium that it belongs to
    assert found(cache, (*key, 8)) == len(key)
    assert found(cache, key[:3]) == 1
