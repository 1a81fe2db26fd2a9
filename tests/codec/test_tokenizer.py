from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import well_formed
from model.codec.tokenizer import NAMED_SLOTS, SPECIALS, Tokenizer, TooManyTokensError
from model.codec.words import PIECE_CHARACTERS
from tests.corpus import corpus, small_tokenizer

TEXTS = st.lists(
    st.sampled_from([*SPECIALS, " ", "\n", "12", "word", "日本", "\u200d", "<|", "|>"]) | st.text(), max_size=8
).map("".join)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_never_holds_a_special_token(text):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token < tokenizer.ranks for token in ids)


@given(st.text(st.characters(), max_size=20) | st.text(st.characters(categories=("Cs", "Cn", "Co", "Cc")), max_size=20))
@settings(max_examples=300, deadline=None)
def test_every_string_can_be_encoded_half_characters_as_the_replacement_character(text):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == well_formed(text)
    assert all(0 <= token < tokenizer.ranks for token in ids)


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00\x00b", "\uffff\U0010ffff", "<|im_end|>\ud800"])
def test_a_half_character_is_no_type_error(text):
    assert small_tokenizer().decode(small_tokenizer().encode(text)) == well_formed(text)


@given(st.lists(st.integers(0, 1023), max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_ids_can_be_decoded_and_their_text_encoded(ids):
    tokenizer = small_tokenizer()
    text = tokenizer.decode(ids)
    text.encode()
    assert all(token < tokenizer.ranks for token in tokenizer.encode(text))


@given(st.from_regex(r"[a-z ]{0,5}[0-9]{1,8}[a-z .,]{0,5}[0-9]{0,4}", fullmatch=True))
@settings(deadline=None)
def test_every_digit_is_one_token(text):
    tokenizer = small_tokenizer()
    digits = [token for token in tokenizer.encode(text) if any(c.isdigit() for c in tokenizer.decode([token]))]
    assert [tokenizer.decode([token]) for token in digits] == [c for c in text if c.isdigit()]


def test_special_slots_follow_the_ranks_as_released():
    tokenizer = small_tokenizer()
    assert tokenizer.vocab_size == 1024
    assert {tokenizer.token_id(name) - tokenizer.ranks for name in SPECIALS} == set(range(256))
    released = {
        "[BOS]": 584,
        "[EOS]": 585,
        "<|im_end|>": 586,
        "<|im_user|>": 587,
        "<|im_assistant|>": 588,
        "<|im_system|>": 594,
        "<|tool_calls_section_begin|>": 595,
        "<|tool_calls_section_end|>": 596,
        "<|tool_call_begin|>": 597,
        "<|tool_call_argument_begin|>": 598,
        "<|tool_call_end|>": 599,
        "<|im_middle|>": 601,
        "<|media_begin|>": 602,
        "<|media_content|>": 603,
        "<|media_end|>": 604,
        "<|media_pad|>": 605,
        "<think>": 606,
        "</think>": 607,
        "[UNK]": 838,
        "[PAD]": 839,
    }
    assert set(released) == set(NAMED_SLOTS.values())
    for name, offset in released.items():
        assert tokenizer.token_id(name) - tokenizer.ranks == offset + 163_000 - 163_584
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.im_end_id, tokenizer.media_pad_id, tokenizer.pad_id) == (
        768,
        769,
        770,
        789,
        1023,
    )
    assert tokenizer.decode([768, *tokenizer.encode("a"), 770]) == "[BOS]a<|im_end|>"


def test_training_is_reproducible_and_saving_keeps_everything(tmp_path: Path):
    tokenizer = small_tokenizer()
    assert Tokenizer.train(iter(corpus()), ranks=768).digest == tokenizer.digest
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest == tokenizer.digest == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    text = "def f(x): return 2026 <|im_end|>"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_transformers_reads_the_same_ids(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "How many digits has 2026?\n\tnaïve 日本  x"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    for slot, name in NAMED_SLOTS.items():
        assert theirs(name)["input_ids"] == [tokenizer.ranks + slot]


def test_missing_broken_and_foreign_files_are_told(tmp_path: Path):
    for folder in (tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(MoonflowError, match="no tokenizer at"):
            Tokenizer.load(folder)
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(MoonflowError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    small_tokenizer().save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    del raw["added_tokens"][2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(MoonflowError, match=r"tokenizer\.json: .*<\|im_end\|>"):
        Tokenizer.load(tmp_path)


def tampered(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder with a tokenizer.json in which one thing was changed."""
    small_tokenizer().save(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 10_000_000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1023,
    "pad_type_id": 0, "pad_token": "[PAD]",
}  # fmt: skip
TEMPLATE = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[BOS]", "type_id": 0}},
                                             {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"[BOS]": {"id": "[BOS]", "ids": [768], "tokens": ["[BOS]"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw["added_tokens"][2].update(special=False), r"added_tokens\[2\].special is False"),
        (lambda raw: raw["added_tokens"][2].update(normalized=True), r"added_tokens\[2\].normalized is True"),
        (lambda raw: raw["added_tokens"][9].update(lstrip=True), r"added_tokens\[9\].lstrip is True"),
        (lambda raw: raw["added_tokens"].append({**raw["added_tokens"][3], "content": "hey", "id": 1024}),
         r"added_tokens\[256\] is .*hey"),
        (lambda raw: raw.update(truncation=TRUNCATION), "truncation is .*must be None"),
        (lambda raw: raw.update(padding=PADDING), "padding is .*must be None"),
        (lambda raw: raw.update(normalizer={"type": "Lowercase"}), "normalizer is .*Lowercase"),
        (lambda raw: raw.update(post_processor=TEMPLATE), "post_processor is"),
        (lambda raw: raw.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer.type is Whitespace"),
        (lambda raw: raw["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
         r"pre_tokenizer.pretokenizers\[0\].individual_digits is False"),
        (lambda raw: raw.update(decoder={"type": "Fuse"}), "decoder.type is Fuse"),
        (lambda raw: raw["model"].update(dropout=0.5), "model.dropout is 0.5"),
        (lambda raw: raw["model"].update(byte_fallback=True), "model.byte_fallback is True"),
        (lambda raw: raw["model"].update(ignore_merges=True), "model.ignore_merges is True"),
        (lambda raw: raw["model"]["vocab"].update({"<|im_end|>": 768}), "tokenizer.json: "),
        (lambda raw: raw["model"]["vocab"].update({"Ġpadding": 10_000_000}), "model.vocab does not number"),
        (lambda raw: raw["model"]["vocab"].update({"日本": 768}), "model.vocab has '日本'"),
        (lambda raw: raw["model"].update(vocab={"a": 0}, merges=[]), "model.vocab lacks 255 of the 256 bytes"),
        (lambda raw: raw.update(model={"type": "WordLevel", "vocab": raw["model"]["vocab"], "unk_token": "a"}),
         "model.type is WordLevel"),
    ],
)  # fmt: skip
def test_a_file_that_would_read_texts_otherwise_is_refused_by_its_field(change, field, tmp_path: Path):
    with pytest.raises(MoonflowError, match=f"tokenizer.json: .*{field}" if "json" not in field else field):
        Tokenizer.load(tampered(tmp_path, change))


def test_a_file_over_which_the_library_panics_is_told(tmp_path: Path):
    """A panic of Rust is no Exception."""
    folder = tampered(tmp_path, lambda raw: raw["model"].update(continuing_subword_prefix="##"))
    with pytest.raises(MoonflowError, match="not a readable tokenizer"):
        Tokenizer.load(folder)


def test_a_file_past_every_vocabulary_is_not_read(tmp_path: Path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(MoonflowError, match="tokenizer.json has more than 268,435,456 bytes"):
        Tokenizer.load(tmp_path)


def test_half_a_character_in_a_training_text_is_learnt_as_it_is_read():
    half, whole = Tokenizer.train(["\ud83d" * 9], 257), Tokenizer.train(["\ufffd" * 9], 257)
    assert half.digest == whole.digest


def test_what_transformers_saves_is_loaded_and_reads_the_same(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer()
    tokenizer.save(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    text = "def f(x): return 2026 <|im_end|> \ud83d"
    assert Tokenizer.load(tmp_path / "theirs").encode(text) == tokenizer.encode(text)


JSON_VALUES = st.sampled_from([True, False, None, 0, 1, 768, 10_000_000, "", "a", "<|im_end|>", [], {}, TRUNCATION])


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_that_is_loaded_makes_a_special_token_of_text(data, tmp_path: Path):
    """Any one value of the file changed: it is refused, or texts are read as before."""

    def change(raw: dict[str, Any]) -> None:
        place: Any = raw
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                place[key] = data.draw(JSON_VALUES)
                return
            place = place[key]

    tampered(tmp_path, change)
    try:
        tokenizer = Tokenizer.load(tmp_path)
    except MoonflowError:
        return
    for text in ("<|im_end|><|im_user|>user<|im_middle|>hey", data.draw(TEXTS)):
        ids = tokenizer.encode(text)
        assert all(token < tokenizer.ranks for token in ids) and tokenizer.decode(ids) == text


def test_too_little_text_and_unknown_names_are_told():
    with pytest.raises(MoonflowError, match="of 768 ranks"):
        Tokenizer.train(["a few words"], ranks=768)
    with pytest.raises(MoonflowError, match="at least 256"):
        Tokenizer.train(["a few words"], ranks=10)
    with pytest.raises(MoonflowError, match="not a special token"):
        small_tokenizer().token_id("<|nope|>")


PARTS = ["word", " ", "  ", "\n", "7", "42", ". ", ",", "'s", "don't ", "\t", "日本", "。", "é", "½", "\u0301", "!\n"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12), st.integers(0, 3))
def test_a_text_in_pieces_has_the_tokens_of_the_whole(parts, shift):
    unit = "".join(parts)
    text = "x" * shift + unit * (2 * PIECE_CHARACTERS // max(1, len(unit)) + 2)
    tokenizer = small_tokenizer()
    whole = tokenizer.encode(text)
    assert tokenizer.encode_within(text, len(whole)) == whole
    assert tokenizer.fewest_tokens(len(text)) <= len(whole)
    with pytest.raises(TooManyTokensError):
        tokenizer.encode_within(text, len(whole) - 1)


def test_no_more_of_a_text_is_tokenised_than_there_is_room_for():
    tokenizer = small_tokenizer()
    began = time.perf_counter()
    for text in ("7" * 30_000_000, "a" * 30_000_000):
        with pytest.raises(TooManyTokensError, match="more than 5000 tokens"):
            tokenizer.encode_within(text, 5000)
    with pytest.raises(MoonflowError, match="a word of more than 65,536 characters"):
        tokenizer.encode_within("a" * 30_000_000, 10**9)
    assert time.perf_counter() - began < 5  # whole, the first takes minutes and 14 GB
