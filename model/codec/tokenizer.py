"""Byte-level BPE with the released layout: the ranks first, then 256 special slots (source: the released tokenizer).

Special tokens are reached only by id (``token_id``): ``encode`` treats "<|im_end|>" in a text as ordinary characters,
so no user, tool or document can open a turn. A tokenizer.json could undo that, or cut, pad or rewrite texts; so all its
fields except ranks and merges must be as ``train`` or ``of_ranks`` makes them. ``train`` makes digits single tokens
(ours): a number is then spelled the same way everywhere, which a tiny model needs for counting and copying. What
``of_ranks`` makes reads texts as the released tokenizer does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import well_formed
from model.codec.words import MAX_WORD_CHARACTERS, RELEASED, SINGLE_DIGITS, Words

SPECIAL_SLOTS = 256
MAX_BYTES = 256 << 20  # of a tokenizer.json; two million ranks, the bound of a model config, take about as much (ours)
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
    """The byte of each character of byte-level BPE: printable Latin-1 bytes are written as themselves, the others, in
    order, from U+0100 on (source: GPT-2)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()
_SHOWN = {byte: shown for shown, byte in _BYTE_OF.items()}


class TooManyTokensError(MoonflowError):
    """A text has more tokens than allowed; they are not counted to the end."""


def _special(name: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(name, special=True, normalized=False)


# What transformers writes for "no post-processor": the text's own tokens, and nothing around them.
_A, _B = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_NO_POST_PROCESSOR = {"type": "TemplateProcessing", "single": [_A], "pair": [_A, _B], "special_tokens": {}}


class Tokenizer:
    """Text <-> token ids. Make one with ``train``, ``load`` or ``of_ranks``.

    Raises:
        MoonflowError: the backend does not have the layout that these make; names the field.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.encode_special_tokens = True  # the names of special tokens in a text are plain text
        self._backend = backend
        self.ranks = backend.get_vocab_size(with_added_tokens=False)
        self.vocab_size = self.ranks + SPECIAL_SLOTS
        self._special_ids = {name: self.ranks + slot for slot, name in enumerate(SPECIALS)}
        self._piece = _checked_words(backend).piece

    @classmethod
    def train(cls, texts: Iterable[str], ranks: int) -> Tokenizer:
        """Learn ``ranks`` byte-level BPE ranks (256 bytes + merges) from ``texts``.

        Raises:
            MoonflowError: the texts have too few different words for so many ranks.
        """
        if ranks < 256:
            raise MoonflowError(f"a byte-level tokenizer needs at least 256 ranks, not {ranks}")
        backend = SINGLE_DIGITS.backend()
        trainer = trainers.BpeTrainer(
            vocab_size=ranks, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        )
        backend.train_from_iterator(map(well_formed, texts), trainer)
        if (learned := backend.get_vocab_size()) != ranks:
            raise MoonflowError(f"the texts yield only {learned} of {ranks} ranks; train the tokenizer on more text")
        backend.add_special_tokens([_special(name) for name in SPECIALS])
        return cls(backend)

    @classmethod
    def of_ranks(cls, ranks: Mapping[bytes, int]) -> Tokenizer:
        """The released tokenizer with these ranks: token -> its rank, 0, 1, 2, ...

        Wherever tiktoken merges two neighbours because together they are a token, there is a merge; the token of the
        lowest rank is merged first, as there.

        Raises:
            MoonflowError: the ranks are not 0, 1, 2, ..., or a byte has none.
        """
        vocabulary = {_shown(token): rank for token, rank in ranks.items()}
        _check_vocabulary(vocabulary)
        merges: list[tuple[str, str]] = []
        for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
            halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            known = sorted((ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks)
            merges += [(_shown(a), _shown(b)) for _, _, a, b in known]
        backend = RELEASED.backend(models.BPE(vocabulary, merges, ignore_merges=RELEASED.whole))
        backend.add_special_tokens([_special(name) for name in SPECIALS])
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read ``folder/tokenizer.json``; raises MoonflowError when it is missing, broken or of another layout."""
        return cls.read(path := Path(folder) / "tokenizer.json", str(path))

    @classmethod
    def read(cls, path: Path, where: str) -> Tokenizer:
        """Read a tokenizer.json that has any name; ``where`` stands for it in the errors of ``load``."""
        if not os.path.isfile(path):  # not Path.is_file, which raises for a folder without access or a long name
            raise MoonflowError(f"no tokenizer at {where}; a data or checkpoint folder holds tokenizer.json")
        if path.stat().st_size > MAX_BYTES:
            raise MoonflowError(f"{where} has more than {MAX_BYTES:,} bytes; take the one the data was prepared with")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics, which are not Exceptions
            raise MoonflowError(f"{where} is not a readable tokenizer ({error}); prepare the data again") from error
        try:
            return cls(backend)
        except MoonflowError as error:
            raise MoonflowError(f"{where}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that transformers reads along with it."""
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
        """``encode`` for an untrusted text: no more of it is read than ``limit`` tokens can hold.

        Raises:
            TooManyTokensError: it has more tokens than ``limit``.
            MoonflowError: it has a word that is longer than any real one.
        """
        ids: list[int] = []
        text, start = well_formed(text), 0
        while start < len(text):
            if len(ids) + self.fewest_tokens(len(text) - start) > limit:
                raise TooManyTokensError(f"the text has more than {limit} tokens")
            piece = self._piece.match(text, start)
            if piece is None:
                raise MoonflowError(
                    f"the text has a word of more than {MAX_WORD_CHARACTERS:,} characters without space, digit or "
                    "punctuation; break it up"
                )
            ids += self.encode(piece[0])
            start = piece.end()
        if len(ids) > limit:
            raise TooManyTokensError(f"the text has more than {limit} tokens")
        return ids

    def fewest_tokens(self, characters: int) -> int:
        """The fewest tokens that a well-formed text of this many characters can have."""
        return -(-characters // self._longest)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` below ``vocab_size``; special tokens are shown as their names, parts of characters as
        U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text in UTF-8, perhaps part of a character; a special token adds its name.

        Raises:
            MoonflowError: there is no such token.
        """
        if not 0 <= token < self.vocab_size:
            raise MoonflowError(f"token {token} is outside 0..{self.vocab_size - 1}")
        return self._bytes[token]

    def token_id(self, name: str) -> int:
        """The id of a special token, e.g. ``token_id("<|im_end|>")``; raises MoonflowError for any other name."""
        if name not in self._special_ids:
            raise MoonflowError(f"{name!r} is not a special token; model.codec.tokenizer.SPECIALS lists them")
        return self._special_ids[name]

    @cached_property
    def _bytes(self) -> list[bytes]:
        texts = [str(self._backend.id_to_token(token)) for token in range(self.ranks)]
        return [bytes(_BYTE_OF[char] for char in text) for text in texts] + [name.encode() for name in SPECIALS]

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token: no token has more characters."""
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


def _shown(token: bytes) -> str:
    return "".join(_SHOWN[byte] for byte in token)


def _checked_words(backend: tokenizers.Tokenizer) -> Words:
    """How a backend cuts texts; MoonflowError unless it differs from those of ``train``, or of ``of_ranks``, only in
    ranks and merges."""
    said, ours = json.loads(backend.to_str()), json.loads(SINGLE_DIGITS.backend().to_str())
    words, released = SINGLE_DIGITS, json.loads(RELEASED.backend().to_str())
    if said["pre_tokenizer"] == released["pre_tokenizer"]:
        words, ours = RELEASED, released
    vocabulary = said["model"].get("vocab")
    _check_vocabulary(vocabulary)
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
    return words


def _check_vocabulary(vocabulary: Any) -> None:
    """MoonflowError unless a model's tokens are numbered 0, 1, 2, ..., made of bytes, and every byte is one."""
    if not isinstance(vocabulary, dict) or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise MoonflowError("model.vocab does not number its tokens 0, 1, 2, ...; prepare the data again")
    if missing := _BYTE_OF.keys() - vocabulary.keys():  # texts would lose the byte
        raise MoonflowError(f"model.vocab lacks {len(missing)} of the 256 bytes, e.g. {min(missing)!r}")
    if odd := next((token for token in vocabulary if not token or not _BYTE_OF.keys() >= set(token)), None):
        raise MoonflowError(f"model.vocab has {odd[:80]!r}, which is not made of bytes")


def _differences(said: Any, ours: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, its value, its expected value) for every field in which two JSON values differ."""
    if said is ours:
        return
    if isinstance(said, dict) and isinstance(ours, dict):
        for key in [*ours, *(said.keys() - ours.keys())]:
            yield from _differences(said.get(key), ours.get(key), f"{field}.{key}" if field else key)
    elif isinstance(said, list) and isinstance(ours, list):
        for index, pair in enumerate(zip_longest(said, ours)):
            yield from _differences(*pair, f"{field}[{index}]")
    elif said != ours or type(said) is not type(ours):
        yield field, said, ours
