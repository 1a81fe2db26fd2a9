"""Latents of sequences that an engine has read, found by the tokens that a new one begins with (source: ours; the tree
is that of SGLang's RadixAttention, arXiv 2312.07104 section 3).

Sequences that begin alike share what they begin with: the samples of a prompt, the turns of an episode.

Shapes: L layers, W = kv latent + rope dims, T tokens of a sequence, N of a run.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from dataclasses import dataclass, field

from torch import Tensor

from model.network.batch import GridTHW
from model.network.vision import media_tokens
from model.rollout.protocol import Request

Key = tuple[int, ...]
"""What the latents of a sequence follow from, one number per token: its id, or for a media pad a negative number, which
is that of the medium's pixels."""


def key_of(request: Request, media_pad: int, merge: tuple[int, int]) -> Key:
    """The key of a request's prompt.

    Args:
        media_pad: the id of media pads.
        merge: patches of a media token, (height, width).
    """
    if request.pixel_values is None:
        return tuple(request.input_ids)
    sizes = [t * h * w for t, h, w in request.grid_thws]
    pads = itertools.chain.from_iterable(
        [_digest(pixels, grid)] * media_tokens(grid, merge)
        for pixels, grid in zip(request.pixel_values.cpu().split(sizes), request.grid_thws, strict=True)
    )
    return tuple(next(pads) if token == media_pad else token for token in request.input_ids)


def _digest(pixels: Tensor, grid: GridTHW) -> int:
    """A negative number for a medium. It has all bits of the hash, so that nobody can make another with its number."""
    hashed = hashlib.sha256(repr(grid).encode() + pixels.contiguous().numpy().tobytes())
    return -1 - int.from_bytes(hashed.digest())


def common(first: Key, second: Key) -> int:
    """How many tokens two keys have in common at their beginnings."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(n for n in range(length) if first[n] != second[n])


@dataclass(eq=False)
class _Run:
    """Tokens that follow one another in every kept sequence that has the first of them here.

    Attributes:
        latents_LWN: their latents.
        next: the runs that follow, by their first token.
        used: when it was last found or kept.
    """

    key: Key
    latents_LWN: Tensor | None
    before: _Run | None
    next: dict[int, _Run] = field(default_factory=dict)
    used: int = 0


class PrefixCache:
    """Up to ``tokens`` tokens; those that were not used for the longest time go first."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.clear()

    def clear(self) -> None:
        """Forget everything: the latents belong to weights that have changed."""
        self._root, self._size, self._clock = _Run((), None, None), 0, 0

    @property
    def size(self) -> int:
        """How many tokens are kept."""
        return self._size

    def find(self, key: Key) -> list[Tensor]:
        """Latents [L, W, N] of the first tokens of ``key``, run after run, as many as are kept.

        At least one token is left to be read, since its state predicts the next one; and a medium is left whole or not
        at all, since the tower encodes whole media.
        """
        path, length = self._follow(key)
        wanted = min(length, len(key) - 1)
        while wanted > 0 and key[wanted] < 0 and key[wanted - 1] == key[wanted]:
            wanted -= 1
        found: list[Tensor] = []
        for run in path:
            if wanted > 0 and run.latents_LWN is not None:
                found.append(run.latents_LWN[..., :wanted])
                wanted -= found[-1].shape[2]
        return found

    def keep(self, key: Key, latents_LWT: Tensor) -> None:
        """Copy the latents of a sequence's tokens, as far as they are not kept already."""
        if len(key) > self.tokens:
            return
        path, length = self._follow(key)
        last, inside = path[-1], length - sum(len(run.key) for run in path[:-1])
        if length == len(key):
            return
        if inside < len(last.key):
            last = self._split(last, inside)
        run = _Run(key[length:], latents_LWT[..., length:].clone(), last, used=self._clock)
        last.next[run.key[0]] = run
        self._size += len(run.key)
        if self._size > self.tokens:
            self._forget()

    def _follow(self, key: Key) -> tuple[list[_Run], int]:
        """The runs along ``key`` from the root on, the last of them perhaps in part, and how many tokens agree."""
        self._clock += 1
        run, path, length = self._root, [self._root], 0
        while length < len(key) and (after := run.next.get(key[length])) is not None:
            run = after
            run.used = self._clock
            path.append(run)
            same = common(run.key, key[length : length + len(run.key)])
            length += same
            if same < len(run.key):
                break
        return path, length

    def _split(self, run: _Run, length: int) -> _Run:
        """Divide a run after ``length`` tokens; returns the first part. Both get memory of their own, so that each is
        free when it is forgotten."""
        assert run.before is not None and run.latents_LWN is not None
        first = _Run(run.key[:length], run.latents_LWN[..., :length].clone(), run.before, used=run.used)
        run.before.next[run.key[0]] = first
        run.key, run.latents_LWN, run.before = run.key[length:], run.latents_LWN[..., length:].clone(), first
        first.next[run.key[0]] = run
        return first

    def _forget(self) -> None:
        """Forget the ends of sequences, oldest first, until an eighth is free: looking for the oldest takes time."""
        runs, ends = [self._root], []
        for run in runs:
            runs.extend(run.next.values())
            if not run.next:
                ends.append((run.used, id(run), run))
        heapq.heapify(ends)
        while self._size > self.tokens * 7 // 8:
            _, _, run = heapq.heappop(ends)
            assert run.before is not None
            del run.before.next[run.key[0]]
            self._size -= len(run.key)
            if not run.before.next and run.before is not self._root:
                heapq.heappush(ends, (run.before.used, id(run.before), run.before))
