"""Byte-level BPE with the released layout: the ranks first, then 256 special slots (source: the released tokenizer).

Special tokens are reached only by id (``token_id``): ``encode`` treats "<|im_end|>" in a text as ordinary characters,
so no user, tool or document can open a turn. A tokenizer.json could undo that, or cut, pad or rewrite texts; so every
field of one but its ranks and merges must be as ``train`` makes it. Digits are always single tokens (ours): numbers are
then spelled the same way wherever they stand, which a tiny model needs for counting and copying.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.errors import MoonflowError
from model.foreign_text import well_formed

SPECIAL_SLOTS = 256
MAX_BYTES = 256 << 20  # of a tokenizer.json; two million ranks, the most of a model config, take about as much (ours)
NAMED_SLOTS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_begin|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "<think>",
    23: "</think>",
    254: "[UNK]",
    255: "[PAD]",
}
SPECIALS = [NAMED_SLOTS.get(slot, f"<|reserved_token_{slot}|>") for slot in range(SPECIAL_SLOTS)]


def _byte_of() -> dict[str, int]:
    """Byte-level BPE writes printable Latin-1 bytes as themselves and the others, in order, from U+0100 on (source:
    GPT-2)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()

# Where a text may be cut so that the pieces' tokens are the whole's: the pre-tokenizer parts it there, whatever stands
# around (beside a digit; before white space; between a letter and what ends a clause).
_CUT = r"(?:(?<=[0-9])|(?=[0-9])|(?<=\S)(?=[ \t\n])|(?<=[^\W\d_])(?=[.,;:!?。，、；：！？])|\Z)"
PIECE_CHARACTERS = 4096  # about 10 ms of work that keeps Python's lock (ours)
MAX_WORD_CHARACTERS = 2**16  # without a place to cut; no language has such words (ours)
_PIECE = re.compile(rf".{{1,{PIECE_CHARACTERS}}}{_CUT}|.{{1,{MAX_WORD_CHARACTERS}}}?{_CUT}", re.DOTALL)


class TooManyTokensError(MoonflowError):
    """A text has more tokens than there is room for; how many, nobody has counted."""


def _without_ranks() -> tokenizers.Tokenizer:
    """Everything of a tokenizer but its ranks, merges and special tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _special(name: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(name, special=True, normalized=False)


# What transformers writes for "no post-processor": the text's own tokens, and nothing around them.
_A, _B = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_NO_POST_PROCESSOR = {"type": "TemplateProcessing", "single": [_A], "pair": [_A, _B], "special_tokens": {}}


class Tokenizer:
    """Text <-> token ids. Make one with ``train`` or ``load``.

    Raises:
        MoonflowError: the backend has not the layout that ``train`` makes; names the field.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.encode_special_tokens = True  # special tokens found in a text are text
        self._backend = backend
        self.ranks = backend.get_vocab_size(with_added_tokens=False)
        self.vocab_size = self.ranks + SPECIAL_SLOTS
        self._special_ids = {name: self.ranks + slot for slot, name in enumerate(SPECIALS)}
        _check_layout(backend)

    @classmethod
    def train(cls, texts: Iterable[str], ranks: int) -> Tokenizer:
        """Learn ``ranks`` byte-level BPE ranks (256 bytes + merges) from ``texts``.

        Raises:
            MoonflowError: when the texts hold too few distinct words for so many ranks.
        """
        if ranks < 256:
            raise MoonflowError(f"a byte-level tokenizer needs at least 256 ranks, not {ranks}")
        backend = _without_ranks()
        trainer = trainers.BpeTrainer(
            vocab_size=ranks, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        )
        backend.train_from_iterator(map(well_formed, texts), trainer)
        if (learned := backend.get_vocab_size()) != ranks:
            raise MoonflowError(f"the texts yield only {learned} of {ranks} ranks; train the tokenizer on more text")
        backend.add_special_tokens([_special(name) for name in SPECIALS])
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read ``folder/tokenizer.json``; raises MoonflowError when it is missing, broken or of another layout."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise MoonflowError(f"no tokenizer at {path}; a data or checkpoint folder holds tokenizer.json")
        if path.stat().st_size > MAX_BYTES:
            raise MoonflowError(f"{path} has more than {MAX_BYTES:,} bytes; take the one the data was prepared with")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics, which are none
            raise MoonflowError(f"{path} is not a readable tokenizer ({error}); prepare the data again") from error
        try:
            return cls(backend)
        except MoonflowError as error:
            raise MoonflowError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that transformers reads beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._json)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "additional_special_tokens": [name for slot, name in NAMED_SLOTS.items() if slot not in (0, 1, 254, 255)],
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, all below ``ranks``: never a special token, whatever the text says.

        Half a character (a lone surrogate, which has no UTF-8) is read as U+FFFD, so that any string can be encoded.
        """
        return self._backend.encode(well_formed(text), add_special_tokens=False).ids

    def encode_within(self, text: str, limit: int) -> list[int]:
        """``encode`` for a text that a stranger chose: no more of it is looked at than ``limit`` tokens can hold.

        Raises:
            TooManyTokensError: there are more.
            MoonflowError: a word is too long to be one.
        """
        ids: list[int] = []
        text, place = well_formed(text), 0
        while place < len(text):
            if len(ids) + self.fewest_tokens(len(text) - place) > limit:
                raise TooManyTokensError(f"the text has more than {limit} tokens")
            piece = _PIECE.match(text, place)
            if piece is None:
                raise MoonflowError(
                    f"the text has a word of more than {MAX_WORD_CHARACTERS:,} characters without space, digit or "
                    "punctuation; break it up"
                )
            ids += self.encode(piece[0])
            place = piece.end()
        if len(ids) > limit:
            raise TooManyTokensError(f"the text has more than {limit} tokens")
        return ids

    def fewest_tokens(self, characters: int) -> int:
        """So many at least has any text of so many characters, none of them half."""
        return -(-characters // self._longest)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` below ``vocab_size``; special tokens are shown as their names, parts of characters as
        U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text in UTF-8, perhaps a part of a character; a special token adds its name.

        Raises:
            MoonflowError: no such token.
        """
        if not 0 <= token < self.vocab_size:
            raise MoonflowError(f"token {token} is outside 0..{self.vocab_size - 1}")
        return self._bytes[token]

    def token_id(self, name: str) -> int:
        """The id of a special token, e.g. ``token_id("<|im_end|>")``; raises MoonflowError for any other name."""
        if name not in self._special_ids:
            raise MoonflowError(f"{name!r} is not a special token; model.tokenizer.SPECIALS lists them")
        return self._special_ids[name]

    @cached_property
    def _bytes(self) -> list[bytes]:
        texts = [str(self._backend.id_to_token(token)) for token in range(self.ranks)]
        return [bytes(_BYTE_OF[char] for char in text) for text in texts] + [name.encode() for name in SPECIALS]

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token, so that no token stands for more characters."""
        return max(len(self._bytes[token]) for token in range(self.ranks))

    @cached_property
    def _json(self) -> str:
        return self._backend.to_str(pretty=True) + "\n"

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the bytes of tokenizer.json."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    @property
    def bos_id(self) -> int:
        return self.token_id("[BOS]")

    @property
    def eos_id(self) -> int:
        return self.token_id("[EOS]")

    @property
    def pad_id(self) -> int:
        return self.token_id("[PAD]")

    @property
    def im_end_id(self) -> int:
        return self.token_id("<|im_end|>")

    @property
    def media_pad_id(self) -> int:
        return self.token_id("<|media_pad|>")


def _check_layout(backend: tokenizers.Tokenizer) -> None:
    """MoonflowError unless a backend differs from ``train``'s in nothing but ranks and merges."""
    said, ours = json.loads(backend.to_str()), json.loads(_without_ranks().to_str())
    vocabulary = said["model"].get("vocab")
    if not isinstance(vocabulary, dict) or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise MoonflowError("model.vocab does not number its tokens 0, 1, 2, ...; prepare the data again")
    if missing := _BYTE_OF.keys() - vocabulary.keys():  # texts would lose the byte
        raise MoonflowError(f"model.vocab lacks {len(missing)} of the 256 bytes, e.g. {min(missing)!r}")
    if odd := next((token for token in vocabulary if not token or not _BYTE_OF.keys() >= set(token)), None):
        raise MoonflowError(f"model.vocab has {odd[:80]!r}, which is not made of bytes")
    ours["model"] |= {"vocab": vocabulary, "merges": said["model"].get("merges")}
    ours["added_tokens"] = [
        {"content": name, "id": len(vocabulary) + slot, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for slot, name in enumerate(SPECIALS)
    ]
    if said["post_processor"] == _NO_POST_PROCESSOR:
        ours["post_processor"] = _NO_POST_PROCESSOR
    for field, theirs, wanted in _differences(said, ours):
        raise MoonflowError(
            f"{field} is {str(theirs)[:80]}, but must be {str(wanted)[:80]}, or a text could make special tokens or be "
            "changed; take the tokenizer.json that the data was prepared with"
        )


def _differences(said: Any, ours: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, what it is, what it should be) of every place in which two JSON values differ."""
    if isinstance(said, dict) and isinstance(ours, dict):
        for key in [*ours, *(said.keys() - ours.keys())]:
            yield from _differences(said.get(key), ours.get(key), f"{field}.{key}" if field else key)
    elif isinstance(said, list) and isinstance(ours, list):
        for place, pair in enumerate(zip_longest(said, ours)):
            yield from _differences(*pair, f"{field}[{place}]")
    elif said != ours or type(said) is not type(ours):
        yield field, said, ours
