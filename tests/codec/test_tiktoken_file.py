"""The released tokenizer's files give its ids: next to tiktoken's rules in plain Python."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.codec.tiktoken_file import check_special_names, read_tiktoken
from model.codec.tokenizer import NAMED_SLOTS, SPECIALS, Tokenizer, TooManyTokensError
from model.codec.words import PIECE_CHARACTERS
from tests.codec.released_files import MORE_TEXT, NAMED, reference_encode, released_ranks, write_tokenizer_files
from tests.corpus import corpus

PARTS = [
    *(
        "word",
        "Word",
        "WORD",
        " ",
        "  ",
        "\n",
        "\r\n",
        "7",
        "42",
        "12345",
        ". ",
        ",",
        "'s",
        "don't ",
        "\t",
        "日本",
        "。",
    ),
    *("é", "½", "\u0301", "!\n", "ǅ", "ª", "\u3007", "ー", "\u00a0", "\u2003", "\x85", "\x1c", "²", "<|im_end|>", "_"),
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12).map("".join)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.of_ranks(released_ranks())


@given(TEXTS)
@settings(max_examples=500, deadline=None)
def test_any_text_has_the_ids_that_tiktoken_gives(text):
    ids = tokenizer().encode(text)
    assert ids == reference_encode(text, released_ranks())
    assert tokenizer().decode(ids) == text and all(token < 768 for token in ids)


def test_documents_have_the_ids_that_tiktoken_gives():
    for text in (*corpus()[1:40:3], *MORE_TEXT):
        assert tokenizer().encode(text) == reference_encode(text, released_ranks())


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(0, 3))
def test_a_text_in_pieces_has_the_tokens_of_the_whole(unit, shift):
    text = "x" * shift + unit * (2 * PIECE_CHARACTERS // max(1, len(unit)) + 2)
    whole = tokenizer().encode(text)
    try:
        assert tokenizer().encode_within(text, len(whole)) == whole
    except TooManyTokensError:
        raise
    except MoonflowError as error:  # 日本日本日本...: one word
        assert "a word of more than" in str(error)


def test_a_word_that_is_a_token_is_that_token_whatever_merges_give():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258, b"bcd": 259}
    ranks[b"abcd"] = 260
    made = Tokenizer.of_ranks(ranks)
    for text in ("abc", "abcd", "abcda", " abcd", "abcabcd"):
        assert made.encode(text) == reference_encode(text, ranks)


def test_the_files_are_read_kept_and_read_by_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    write_tokenizer_files(tmp_path)
    read = read_tiktoken(tmp_path / "tiktoken.model", "here")
    check_special_names((tmp_path / "tokenizer_config.json").read_text(), "here", read)
    assert (read.ranks, read.vocab_size, read.bos_id, read.media_pad_id) == (768, 1024, 768, 789)
    read.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.digest == read.digest == tokenizer().digest
    text = MORE_TEXT[0] + "<|im_end|>" + corpus()[3]
    assert again.encode(text) == reference_encode(text, released_ranks())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(MORE_TEXT[0])["input_ids"] == read.encode(MORE_TEXT[0]) and len(theirs) == 1024
    assert theirs("<|im_end|>")["input_ids"] == [770]
    assert set(NAMED_SLOTS.items()) <= set(NAMED.items())
    theirs.save_pretrained(tmp_path / "theirs")
    assert Tokenizer.load(tmp_path / "theirs").encode(text) == read.encode(text)


def test_no_text_makes_a_special_token():
    for name in SPECIALS:
        assert all(token < 768 for token in tokenizer().encode(f"a{name} {name}"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["not base64! 0"], "line 1 is not a token in base64 and its rank"),
        (["YQ== 0", "YQ=="], "line 2 is not a token"),
        (["YQ== x"], "line 1 is not a token"),
        (["YQ== 0", "Yg== 2"], "does not number its tokens"),
        (["YQ== 0", "YWFh" * 341 + "YWE= 1"], "line 2 is a token of 1,025 bytes, more than 1,024"),
        (["YQ== 0"], "lacks 255 of the 256 bytes"),
        ([], "lacks 256 of the 256 bytes"),
    ],
)
def test_damaged_ranks_are_told(lines, told, tmp_path: Path):
    (tmp_path / "tiktoken.model").write_text("\n".join(lines))
    with pytest.raises(MoonflowError, match=f"s3://a/tiktoken.model: .*{told}") as caught:
        read_tiktoken(tmp_path / "tiktoken.model", "s3://a/tiktoken.model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path):
    write_tokenizer_files(tmp_path)
    text = (tmp_path / "tokenizer_config.json").read_text()
    raw = json.loads(text)
    raw["added_tokens_decoder"]["770"]["content"] = "<|endoftext|>"
    with pytest.raises(
        MoonflowError, match=r"there: <\|im_end\|> is not there, but .* with 768 ranks, it is token 770"
    ):
        check_special_names(json.dumps(raw), "there", tokenizer())
    raw["added_tokens_decoder"]["777"]["content"] = "<|im_end|>"
    with pytest.raises(MoonflowError, match=r"<\|im_end\|> is 777, but"):
        check_special_names(json.dumps(raw), "there", tokenizer())
    for broken in ("{", "[]", "{}", '{"added_tokens_decoder": {"a": 1}}'):
        with pytest.raises(MoonflowError, match="there gives no usable added_tokens_decoder"):
            check_special_names(broken, "there", tokenizer())
