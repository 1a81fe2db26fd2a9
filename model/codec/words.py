"""How a tokenizer cuts a text into words, inside of which it merges bytes: in two ways (source: ours, and the released
tokenizer).

Our own tokenizers have single digits, so that a number is spelled the same way everywhere. The released one, in its
``tiktoken.model``, has up to three digits in a word, Chinese runs apart from other letters, and a word that is a token
is that token whatever its merges would give.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

PIECE_CHARACTERS = 4096  # about 10 ms of work, during which Python's lock is held (ours)
MAX_WORD_CHARACTERS = 2**16  # without a place to cut; no language has such words (ours)


@dataclass(frozen=True)
class Words:
    """One way to cut.

    Attributes:
        pre_tokenizer: makes the library's object that cuts.
        whole: whether a word that is a token is not merged.
        cut: a pattern of places where a text may be cut so that the tokens of its pieces are those of the whole.
    """

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    whole: bool
    cut: str

    def backend(self, model: models.BPE | None = None) -> tokenizers.Tokenizer:
        """A tokenizer without special tokens; without ranks and merges, too, if no ``model`` is given."""
        made = tokenizers.Tokenizer(model or models.BPE(ignore_merges=self.whole))
        made.pre_tokenizer = self.pre_tokenizer()
        made.decoder = decoders.ByteLevel()
        return made

    @property
    def piece(self) -> re.Pattern[str]:
        """The next piece of a text: as long as ``PIECE_CHARACTERS`` if there is a place to cut, or up to the first."""
        return re.compile(rf".{{1,{PIECE_CHARACTERS}}}{self.cut}|.{{1,{MAX_WORD_CHARACTERS}}}?{self.cut}", re.DOTALL)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
RELEASED_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""A word of the released tokenizer: the first alternative that matches (source: its ``pat_str``)."""


def _released() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(RELEASED_PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_CLAUSE_END = "[.,;:!?。，、；：！？]"
_LETTER = r"[^\W\d_]"
SINGLE_DIGITS = Words(
    _single_digits,
    whole=False,
    # Next to a digit; before white space; between a letter and a punctuation mark that ends a clause.
    cut=rf"(?:(?<=[0-9])|(?=[0-9])|(?<=\S)(?=[ \t\n])|(?<={_LETTER})(?={_CLAUSE_END})|\Z)",
)
RELEASED = Words(
    _released,
    whole=True,
    # No word goes on past these places. The text before must not end in white space: how much of that is one word
    # depends on what follows.
    cut=rf"(?:(?<=[0-9])(?=[A-Za-z])|(?<=\S)(?=[ \t])|(?<=[^\W_])(?=\n|{_CLAUSE_END})|\Z)",
)
"""Between a digit and a letter; before a space; between a letter or digit and a new line or a punctuation mark."""
