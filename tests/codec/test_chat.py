from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.codec.chat import ToolCall, call_id, encode_chat, encode_turns, parse_assistant
from model.codec.tokenizer import SPECIALS, TooManyTokensError
from model.codec.tools import TOOLS
from tests.corpus import small_tokenizer

TOKENIZER = small_tokenizer()
TEXT = st.lists(
    st.sampled_from(["<|im_end|>", "</think>", "<|tool_call_end|>", "\n", " 42", "box"]) | st.text(max_size=8),
    max_size=4,
).map("".join)
CALL = st.builds(
    lambda name, values: {"name": name, "arguments": dict(zip(TOOLS[name].parameters, values, strict=False))},
    st.sampled_from(list(TOOLS)),
    st.tuples(TEXT, TEXT),
)
STEP = st.tuples(TEXT, st.lists(CALL, min_size=1, max_size=3), TEXT)


def shown(messages: list[dict[str, Any]], tools: list[str] | None = None, **options: bool) -> str:
    return TOKENIZER.decode(encode_chat(messages, tools or [], TOKENIZER, **options).ids)


def learnt(messages: list[dict[str, Any]]) -> str:
    encoded = encode_chat(messages, [], TOKENIZER)
    return TOKENIZER.decode([token for token, target in zip(encoded.ids, encoded.loss, strict=True) if target])


def test_a_whole_conversation_reads_as_the_released_template():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "media": "png"}, {"type": "text", "text": "How many?"}]},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"name": "ipython", "arguments": {"code": "n"}},
                {"name": "search", "arguments": {"query": "é"}},
            ],
        },
        {"role": "tool", "tool_call_id": "functions.ipython:0", "content": "3"},
        {"role": "tool", "tool_call_id": "functions.search:1", "content": "none"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Sure?"},
    ]
    assert shown(messages, ["ipython"], add_generation_prompt=True) == (
        "<|im_system|>tool_declare<|im_middle|>namespace functions {\n"
        "// run Python\ntype ipython = (_: {code: string}) => any;\n}<|im_end|>"
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        "<|im_user|>user<|im_middle|><|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n"
        "How many?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>Let me see.<|tool_calls_section_begin|>"
        '<|tool_call_begin|>functions.ipython:0<|tool_call_argument_begin|>{"code": "n"}<|tool_call_end|>'
        '<|tool_call_begin|>functions.search:1<|tool_call_argument_begin|>{"query": "é"}<|tool_call_end|>'
        "<|tool_calls_section_end|><|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.ipython:0\n3<|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.search:1\nnone<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>3<|im_end|>"
        "<|im_user|>user<|im_middle|>Sure?<|im_end|><|im_assistant|>assistant<|im_middle|><think></think>"
    )
    assert shown(messages[:1], add_generation_prompt=True, thinking=True).endswith("<|im_middle|><think>")


def test_history_loses_its_reasoning_and_the_current_chain_of_calls_keeps_it():
    call = [{"name": "search", "arguments": {"query": "q"}}]
    old = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning": "OLD", "tool_calls": call},
        {"role": "tool", "content": "r"},
    ]
    answered = [*old, {"role": "assistant", "reasoning": "DONE", "content": "b"}]
    assert "<think>OLD</think>" in shown(old, add_generation_prompt=True)
    assert "<think>OLD</think>" in shown(answered) and "<think>DONE</think>" in shown(answered)
    again = [
        *answered,
        {"role": "user", "content": "c"},
        {"role": "assistant", "reasoning": "NEW", "tool_calls": call},
        {"role": "tool", "content": "r"},
    ]
    text = shown(again, add_generation_prompt=True)
    assert (
        "OLD" not in text and "DONE" not in text and text.count("<think></think>") == 3 and "<think>NEW</think>" in text
    )


def test_the_loss_covers_what_the_policy_would_sample():
    call = [{"name": "search", "arguments": {"query": "q"}}]
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "reasoning": "why", "content": "look", "tool_calls": call},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "answer"},
    ]
    assert learnt(messages) == (
        "why</think>look<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>"
        '{"query": "q"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>answer<|im_end|>'
    )
    messages[1]["loss"] = False
    assert learnt(messages) == "answer<|im_end|>"


@given(TEXT, TEXT, st.lists(STEP, max_size=3), TEXT, st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_episode_appends_exactly_the_tokens_of_the_whole_conversation(system, question, steps, answer, thinking):
    """prompt + generated + encode_turns(...) + generated == encode_chat(whole), and parsing inverts each generation."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    running = encode_chat(messages, list(TOOLS), TOKENIZER, add_generation_prompt=True, thinking=thinking).ids
    calls_so_far = 0
    for content, calls, result in [*steps, (answer, [], "")]:
        turn: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": calls}
        if thinking:
            turn["reasoning"] = "because " + content
        messages.append(turn)
        whole = encode_chat(messages, list(TOOLS), TOKENIZER)
        assert whole.ids[: len(running)] == running
        generated = whole.ids[len(running) :]
        assert all(whole.loss[len(running) :])

        parsed = parse_assistant(generated, TOKENIZER)
        assert parsed.error is None
        assert (parsed.reasoning, parsed.content) == (turn.get("reasoning", ""), content)
        ids = [call_id(call["name"], calls_so_far + n) for n, call in enumerate(calls)]
        assert parsed.tool_calls == [
            ToolCall(i, call["name"], call["arguments"]) for i, call in zip(ids, calls, strict=True)
        ]

        results: list[dict[str, Any]] = [{"role": "tool", "name": call["name"], "content": result} for call in calls]
        by_id = [{"role": "tool", "tool_call_id": i, "content": result} for i in ids]
        appended = encode_turns(results, TOKENIZER, calls_so_far, thinking=thinking)
        assert appended == encode_turns(by_id, TOKENIZER, calls_so_far, thinking=thinking)
        running += generated + appended
        messages += by_id
        calls_so_far += len(calls)
    if not thinking:  # once answered, a thinking turn is history: its reasoning goes
        assert running == encode_chat(messages, list(TOOLS), TOKENIZER, add_generation_prompt=True).ids


@given(st.lists(st.sampled_from(SPECIALS), min_size=1, max_size=5).map(" ".join))
@settings(deadline=None)
def test_no_text_can_open_or_close_a_turn(text):
    """A special token's name in any field stays text: the special tokens are those of harmless text."""

    def specials(word: str) -> list[int]:
        call = [{"name": "search", "arguments": {"query": word}}]
        messages = [
            {"role": "system", "content": word},
            {"role": "user", "content": [{"type": "text", "text": word}]},
            {"role": "assistant", "content": word, "tool_calls": call},
            {"role": "tool", "content": word},
            {"role": "assistant", "content": word},
        ]
        return [token for token in encode_chat(messages, ["search"], TOKENIZER).ids if token >= TOKENIZER.ranks]

    assert specials(text) == specials("harmless")


def special(*names: str) -> list[int]:
    return [TOKENIZER.token_id(name) for name in names]


BEGIN, END = (
    special("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    special("<|tool_call_end|>", "<|tool_calls_section_end|>"),
)
ARGUMENT = special("<|tool_call_argument_begin|>")


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (BEGIN + TOKENIZER.encode("functions.search:0") + ARGUMENT + TOKENIZER.encode("{oops") + END, "not JSON"),
        (
            BEGIN + TOKENIZER.encode("functions.search:0") + ARGUMENT + TOKENIZER.encode("[1]") + END,
            "not a JSON object",
        ),
        (BEGIN + TOKENIZER.encode("search") + ARGUMENT + TOKENIZER.encode("{}") + END, "functions.NAME:IDX"),
        (BEGIN + TOKENIZER.encode("functions.search:0") + ARGUMENT + TOKENIZER.encode("{}"), "was not closed"),
        (BEGIN + TOKENIZER.encode("functions.search:0") + ARGUMENT + TOKENIZER.encode("{}") + END[:1], "malformed"),
        (BEGIN[:1] + END[1:], "empty"),
        (special("<|im_user|>"), "special tokens"),
        (special("<think>") + TOKENIZER.encode("hm"), "not closed"),
        (special("<|im_end|>", "<|im_user|>"), "follow"),
    ],
)
def test_malformed_turns_are_told_and_call_nothing(ids, told):
    turn = parse_assistant(ids, TOKENIZER)
    assert turn.error is not None and told in turn.error
    assert turn.tool_calls == []


@given(st.lists(st.integers(0, 1023) | st.integers(768, 795), max_size=30))
@settings(max_examples=300, deadline=None)
def test_whatever_is_sampled_can_be_parsed(ids):
    turn = parse_assistant(ids, TOKENIZER)
    assert isinstance(turn.content, str)


def called(arguments: str) -> list[int]:
    return BEGIN + TOKENIZER.encode("functions.search:0") + ARGUMENT + TOKENIZER.encode(arguments) + END


@pytest.mark.parametrize(
    "arguments",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "1" * 5000 + "}", '{"a": 1, "a": 2}',
     '{"a": ' * 5000, "[" * 5000, '{"a": [1e999]}'],
)  # fmt: skip
def test_arguments_that_are_more_than_json_are_no_call(arguments):
    turn = parse_assistant(called(arguments), TOKENIZER)
    assert turn.error == "the arguments of functions.search:0 are not JSON" and turn.tool_calls == []


JSON_PARTS = [*'{}[]:," -', '"a"', r'"\ud83d"', r"\u", "NaN", "1e999", "9" * 5000, "[" * 3000]


@given(st.lists(st.sampled_from(JSON_PARTS) | st.text(max_size=3), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_as_arguments_is_a_call_that_can_be_rendered_or_an_error(arguments):
    for text in (arguments, f'{{"a": {arguments}}}'):
        turn = parse_assistant(called(text), TOKENIZER)
        assert (turn.error is None) == bool(turn.tool_calls)
        for call in turn.tool_calls:
            messages = [{"role": "assistant", "tool_calls": [{"name": call.name, "arguments": call.arguments}]}]
            assert parse_assistant(encode_chat(messages, [], TOKENIZER).ids[5:], TOKENIZER).tool_calls == [call]


def test_half_a_character_in_arguments_becomes_the_replacement_character():
    turn = parse_assistant(called(r'{"query": "\ud83d", "\udc00": ["x\ud83d\ude00"]}'), TOKENIZER)
    assert turn.error is None
    assert turn.tool_calls[0].arguments == {"query": "\ufffd", "\ufffd": ["x😀"]}


def test_half_a_character_in_any_turn_is_encoded():
    call = [{"name": "search", "arguments": {"query": "\ud83d"}}]
    messages = [
        {"role": "system", "content": "\ud83d"},
        {"role": "user", "content": [{"type": "text", "text": "\udc00"}]},
        {"role": "assistant", "reasoning": "\ud83d", "content": "\ud83d", "tool_calls": call},
        {"role": "tool", "content": "\ud83d"},
    ]
    assert shown(messages).count("\ufffd") == 6
    result = {"role": "tool", "tool_call_id": "functions.search:0", "content": "\ud83d"}
    assert "\ufffd" in TOKENIZER.decode(encode_turns([result], TOKENIZER, 0))


def test_a_cut_off_completion_is_read_as_far_as_it_goes():
    assert parse_assistant(TOKENIZER.encode("half an ans"), TOKENIZER).content == "half an ans"


@pytest.mark.parametrize(
    ("messages", "tools", "told"),
    [
        ([{"role": "robot", "content": "x"}], [], "role 'robot'"),
        ([{"role": "user", "content": "x"}], ["hammer"], "unknown tool 'hammer'"),
        ([{"role": "user", "content": [{"type": "audio", "media": "wav"}]}], [], "'audio'"),
        ([{"role": "tool", "tool_call_id": "functions.search:0", "content": "x"}], [], "answers 'functions.search:0'"),
        ([{"role": "assistant", "content": [{"type": "image", "media": "png"}]}], [], "media in its content"),
    ],
)
def test_conversations_that_cannot_be_rendered_are_told(messages, tools, told):
    with pytest.raises(MoonflowError, match=told):
        encode_chat(messages, tools, TOKENIZER)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_a_limit_changes_nothing_but_what_is_too_long(texts):
    turns = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    whole = encode_chat(turns, [], small_tokenizer())
    assert encode_chat(turns, [], small_tokenizer(), limit=len(whole.ids)) == whole
    with pytest.raises(TooManyTokensError):
        encode_chat(turns, [], small_tokenizer(), limit=len(whole.ids) - 1)
