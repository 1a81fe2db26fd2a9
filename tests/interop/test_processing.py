"""The code and the template that a checkpoint carries, against model/codec/chat.py and model/codec/image.py.

transformers' own image and video processor import torchvision, which has no build for a machine without a GPU here. So
pixels are compared with the processor that our export ships and that vLLM (where numba is missing) and SGLang run, and
the resize rule also with transformers' own, read out of its file. Its template is the one the folder holds in any case.

A rendered conversation is one text, in which a special token's name *is* that token; model/codec/chat.py works on
tokens and keeps such names text. The texts here hold none.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import math
import sys
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.dynamic_module_utils import get_imports
from transformers.models.kimi_k25.processing_kimi_k25 import Kimi_K25Processor
from transformers.video_utils import VideoMetadata

from model.checkpoint.file_names import REMOTE
from model.checkpoint.load import load_image_config
from model.codec.chat import encode_chat
from model.codec.declared_tools import declare
from model.codec.image import ImageConfig, encode_image, encode_png, image_grid, scaled_size
from model.codec.tokenizer import SPECIALS
from model.codec.tools import TOOLS
from model.codec.video import decode_video, encode_mp4, encode_video, video_grids
from model.data.samples.tokenize import expand_media
from tests.odd_media import noise, odd_images, video
from tests.tiny_folders import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def processor(folder, modules):
    return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)


# Conversations: ours, and the same as an engine's caller writes them.

TEXT = (
    st.lists(st.sampled_from(["\n", " 42", "box", "{% x %}", "\t é", "<|", "日本"]) | st.text(max_size=8), max_size=4)
    .map("".join)
    .filter(lambda text: not any(name in text for name in SPECIALS))
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALL = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments}, NAMES, st.dictionaries(TEXT, VALUES, max_size=3)
)
PART = st.builds(lambda text: {"type": "text", "text": text}, TEXT) | st.just({"type": "image", "media": "png"})
CONTENT = TEXT | st.lists(PART, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(CONTENT)})
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(st.lists(CALL, min_size=1, max_size=2))
            turns.append({"role": "assistant", "content": draw(TEXT), "tool_calls": calls, "reasoning": draw(TEXT)})
            first = sum(len(turn.get("tool_calls", ())) for turn in turns) - len(calls)
            ids = [f"functions.{call['name']}:{first + n}" for n, call in enumerate(calls)]
            order = draw(st.permutations(ids))[: draw(st.integers(0, len(ids)))]
            named = draw(st.booleans())  # results in the calls' order need no id
            turns += [
                {"role": "tool", "content": draw(CONTENT)} | ({"tool_call_id": one} if named else {}) for one in order
            ]
        if draw(st.booleans()):
            turns.append({"role": "assistant", "content": draw(TEXT), "reasoning": draw(TEXT)})
    return turns


def as_caller(turns: list[dict[str, Any]], own_ids: bool, reasoning_key: str) -> list[dict[str, Any]]:
    """OpenAI's shape: ids of the caller's own choosing, or the ones that the template writes; media by address."""
    messages, calls, names = [], 0, {}
    for turn in turns:
        message = {"role": turn["role"], "content": turn["content"]}
        if isinstance(turn["content"], list):
            message["content"] = [
                part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": "data:"}}
                for part in turn["content"]
            ]
        if turn.get("reasoning"):
            message[reasoning_key] = turn["reasoning"]
        if turn.get("tool_calls"):
            message["tool_calls"] = []
            for call in turn["tool_calls"]:
                written = f"functions.{call['name']}:{calls}"
                names[written] = f"call_{calls}" if own_ids else written
                function = {"name": call["name"], "arguments": call["arguments"]}
                message["tool_calls"].append({"id": names[written], "type": "function", "function": function})
                calls += 1
        if "tool_call_id" in turn:
            message["tool_call_id"] = names[turn["tool_call_id"]]
        messages.append(message)
    return messages


SCHEMAS = st.recursive(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null", "array", "object")])
    | st.sampled_from([{}, {"type": "odd"}, {"enum": ["a", 1, None]}, {"enum": []}, {"const": "é"}, {"type": []}])
    | st.sampled_from([{"type": ["string", "null"]}, {"anyOf": []}, {"type": "string", "description": "a"}]),
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, max_size=3))
        | st.builds(lambda options: {"oneOf": options}, st.lists(inner, max_size=3))
        | st.builds(
            lambda properties, needed: {"type": "object", "properties": properties, "required": needed},
            st.dictionaries(NAMES | st.sampled_from(["items", "keys", "get"]), inner, max_size=3),
            st.lists(NAMES, max_size=2) | st.just(["items"]),
        )
    ),
    max_leaves=5,
)
FUNCTION = st.fixed_dictionaries(
    {"name": NAMES | st.sampled_from(sorted(TOOLS))},
    optional={"description": TEXT | st.just("one\n\n  two \n"), "parameters": SCHEMAS | st.just({"type": "object"})},
)
FUNCTIONS = st.lists(FUNCTION, max_size=3, unique_by=lambda function: function["name"])


@given(conversations(), FUNCTIONS, st.booleans(), st.booleans(), st.sampled_from(["reasoning_content", "reasoning"]))
@settings(max_examples=150, deadline=None)
def test_the_template_writes_what_chat_encodes(processor, turns, functions, thinking, own_ids, reasoning_key):
    tools = [{"type": "function", "function": function} for function in functions]
    prompt = turns[-1]["role"] != "assistant"
    expected = encode_chat(turns, declare(tools), TOKENIZER, add_generation_prompt=prompt, thinking=thinking)
    messages = as_caller(turns, own_ids, reasoning_key)
    options = {"thinking": True} if thinking else {}
    got = processor.tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=prompt, tokenize=True, return_dict=False, **options
    )
    assert got == expected.ids, processor.tokenizer.decode(got)


ARRAY, NULLABLE = {"type": "array"}, {"type": ["string", "null"]}


def test_every_kind_of_type_is_declared_as_the_server_declares_it(processor):
    inner = [ARRAY, NULLABLE, {"type": "array", "items": NULLABLE}, {"anyOf": [ARRAY, NULLABLE, ARRAY]}, {"enum": [1]}]
    inner += [{"type": "object"}, {"const": None}, {"oneOf": []}, {"type": "integer"}, {"type": "odd"}, {}]
    inner += [{"type": "object", "properties": {"items": ARRAY, "get": {}}, "required": ["get"]}]
    both = {"type": ["array", "odd", "null", "object", "odd"], "items": NULLABLE, "properties": {"a": ARRAY}}
    inner += [both, {"type": ["object", "null"], "properties": {"b": both}}, {"type": "array", "properties": {"c": {}}}]
    turns = [{"role": "user", "content": "x"}]
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(10):
        deep = {"type": "array", "items": deep}
    for schema in [*inner, deep, {"type": "object", "properties": {f"p{n}": each for n, each in enumerate(inner)}}]:
        tools = [{"type": "function", "function": {"name": "t", "description": "one\n\n two ", "parameters": schema}}]
        expected = TOKENIZER.decode(encode_chat(turns, declare(tools), TOKENIZER).ids)
        assert processor.apply_chat_template(turns, tools=tools) == expected


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_after_the_last_answer_only(processor, key):
    call = {"name": "search", "arguments": {"query": "q"}}
    steps = [
        {"role": "assistant", "reasoning": "WHY", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r"},
    ]
    turns = [{"role": "user", "content": "a"}, *steps, {"role": "assistant", "reasoning": "SO", "content": "b"}]
    turns += [{"role": "user", "content": "c"}, *steps]
    text = processor.apply_chat_template(as_caller(turns, False, key), add_generation_prompt=True, thinking=True)
    assert text == TOKENIZER.decode(encode_chat(turns, [], TOKENIZER, add_generation_prompt=True, thinking=True).ids)
    assert text.count("<think></think>") == 2 and text.count("<think>WHY</think>") == 1 and text.endswith("<think>")


@pytest.mark.parametrize("name", sorted(TOOLS))
@pytest.mark.parametrize("extra", [{}, {"parameters": {"type": "object"}}, {"description": None, "parameters": None}])
def test_trained_tools_keep_their_words(processor, name, extra):
    turns = [{"role": "user", "content": "x"}]
    expected = TOKENIZER.decode(encode_chat(turns, [name], TOKENIZER).ids)
    tools = [{"type": "function", "function": {"name": name, **extra}}]
    assert processor.apply_chat_template(turns, tools=tools) == expected


def test_arguments_that_are_text_already_are_not_written_twice(processor):
    call = {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"query": "q"}'}}
    text = processor.apply_chat_template([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert '<|tool_call_argument_begin|>{"query": "q"}<|tool_call_end|>' in text


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "robot", "content": "x"}], "unknown role robot"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "unknown content part audio"),
        ([{"role": "tool", "tool_call_id": "functions.search:0", "content": "x"}], "answers functions.search:0"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "media in its content"),
    ],
)
def test_what_cannot_be_rendered_is_told(processor, messages, told):
    with pytest.raises(jinja2.TemplateError, match=told):
        processor.apply_chat_template(messages)


def test_a_prompt_with_media_as_engines_and_as_we_prepare_it(processor, folder):
    """Images of three sizes, one to be shrunk, and a video of two chunks: the same tokens and pixels."""
    video = encode_mp4(np.repeat(np.arange(6, dtype=np.uint8) * 40, 28 * 56 * 3).reshape(6, 28, 56, 3))
    files = {
        "a": encode_png(noise(28, 84, 3)),
        "b": encode_png(noise(60, 45, 3, seed=1)),
        "c": video,
        "d": encode_png(noise(90, 90)),
    }
    kinds = {name: "video" if name == "c" else "image" for name in files}
    parts = [part for name in files for part in ({"type": kinds[name], "media": name}, {"type": "text", "text": name})]
    turns = [{"role": "user", "content": [{"type": "text", "text": "Look:"}, *parts]}]
    config = load_image_config(folder)
    ours = expand_media(encode_chat(turns, [], TOKENIZER, add_generation_prompt=True), files, TOKENIZER, config)

    medias = [{"type": kinds[name], kinds[name]: data} for name, data in files.items()]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    theirs = processor(text=text, medias=medias)
    assert theirs["input_ids"][0].tolist() == ours.input_ids.tolist()
    assert [tuple(grid) for grid in theirs["grid_thws"].tolist()] == ours.grid_thws
    assert ours.grid_thws == [(1, 2, 6), (1, 6, 4), (4, 2, 4), (2, 2, 4), (1, 8, 8)]
    assert theirs["pixel_values"].dtype == torch.float32 and torch.equal(theirs["pixel_values"], ours.pixel_values)

    # A text whose pads an engine has expanded stays as it is; pads that are not the media's number are an error.
    images = [medias[0], medias[1]]
    one_each = "<|media_pad|> and <|media_pad|>"
    expanded = processor(text=one_each, medias=images)["input_ids"]
    assert torch.equal(
        processor(text="<|media_pad|>" * 3 + " and " + "<|media_pad|>" * 6, medias=images)["input_ids"], expanded
    )
    assert torch.equal(
        processor(text=one_each, images=[[Image.open(io.BytesIO(files[n])) for n in "ab"]])["input_ids"], expanded
    )
    with pytest.raises(ValueError, match="1 .* for 2 media"):
        processor(text="<|media_pad|>", medias=images)


LIMITED = ImageConfig(in_patch_limit=40, patch_limit_on_one_side=16, in_patch_limit_each_frame=20)


@pytest.mark.parametrize("config", [ImageConfig(), LIMITED, LIMITED.model_copy(update={"in_patch_limit_video": 50})])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (13, 97), (150, 61), (400, 9), (97, 300)])
def test_the_shipped_processor_prepares_what_we_prepare(processor, config, size):
    vision = type(processor.image_processor)(media_proc_cfg=config.model_dump(mode="json"))
    width, height = size
    image = {"type": "image", "image": Image.fromarray(noise(height, width, 3))}
    values, grid = encode_image(noise(height, width, 3), config)
    got = vision.preprocess([image])
    np.testing.assert_array_equal(got["pixel_values"].numpy(), values)
    assert tuple(got["grid_thws"][0].tolist()) == grid
    assert vision.media_tokens_calculator(image) == grid[1] * grid[2] // 4

    frames = noise(6, height, width, 3)
    chunks = [{"type": "video_chunk", "video_chunk": list(frames[start : start + 4])} for start in (0, 4)]
    values, grids = encode_video(frames, config)
    got = vision.preprocess(chunks)
    np.testing.assert_array_equal(got["pixel_values"].numpy(), values)
    assert [tuple(each) for each in got["grid_thws"].tolist()] == grids
    assert [vision.media_tokens_calculator(chunk) for chunk in chunks] == [h * w // 4 for _, h, w in grids]


@pytest.mark.parametrize("name", odd_images())
def test_a_picture_is_the_same_to_the_shipped_processor_as_to_training(processor, name):
    """Encoded, and decoded by an engine that does not read it as people do but keeps the bytes next to it."""
    data, seen = odd_images()[name]
    values, grid = encode_image(data, ImageConfig())
    np.testing.assert_array_equal(values, encode_image(seen, ImageConfig())[0])
    beside = SimpleNamespace(media=Image.open(io.BytesIO(data)).convert("RGB"), original_bytes=data)
    for image in (data, beside):
        medium = {"type": "image", "image": image}
        got = processor.image_processor.preprocess(medium)
        np.testing.assert_array_equal(got["pixel_values"].numpy(), values)
        assert tuple(got["grid_thws"][0].tolist()) == grid == image_grid(data, ImageConfig())
        assert processor.image_processor.media_tokens_calculator(medium) == grid[1] * grid[2] // 4


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("turned", [0, 90])
def test_a_video_is_the_same_to_the_shipped_processor_as_to_training(processor, kind, turned):
    data = video(noise(41, 28, 56, 3), kind, fps=20, turned=turned)
    values, grids = encode_video(data, ImageConfig())
    chunks = processor.image_processor.split_video_chunks(data)
    got = processor.image_processor.preprocess(chunks)
    np.testing.assert_array_equal(got["pixel_values"].numpy(), values)
    assert [tuple(grid) for grid in got["grid_thws"].tolist()] == grids == video_grids(data, ImageConfig())[0]


def test_pixels_can_be_left_for_the_engine_to_normalise(processor):
    image = noise(28, 28, 3)
    got = processor.image_processor.preprocess(
        [{"type": "image", "image": image}], do_rescale=False, do_normalize=False
    )
    np.testing.assert_array_equal(got["pixel_values"][0], image[:14, :14].transpose(2, 0, 1))


def of_transformers(name: str) -> Any:
    """A function out of the file of its image processor, which cannot be imported without torchvision."""
    path = importlib.util.find_spec("transformers.models.kimi_k25").submodule_search_locations[0]
    with open(f"{path}/image_processing_kimi_k25.py") as file:
        tree = ast.parse(file.read())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    names: dict[str, Any] = {"math": math}
    exec(compile(ast.Module(found, []), path, "exec"), names)
    return names[name]


def test_patches_are_those_of_transformers():
    pixels = noise(56, 84, 3)
    values = (torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0) / 255 - 0.5) / 0.5
    patches, *grid = of_transformers("patchify")(None, values, 14)
    ours, (_, *our_grid) = encode_image(pixels, ImageConfig())
    assert our_grid == grid
    torch.testing.assert_close(torch.from_numpy(ours), patches[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "fps"), [(6, 2), (41, 20), (75, 30), (9, 1)])
def test_a_video_reads_as_transformers_writes_it(frames, fps):
    """Timestamps and pads of its chunks, from transformers' ``Kimi_K25Processor`` (with one pad for all media)."""
    video = encode_mp4(np.zeros((frames, 28, 84, 3), np.uint8), fps=fps)
    config = ImageConfig()
    _, seconds = decode_video(video, config)
    turns = [{"role": "user", "content": [{"type": "video", "media": "v"}]}]
    ours = expand_media(encode_chat(turns, [], TOKENIZER), {"v": video}, TOKENIZER, config)
    metadata = VideoMetadata(total_num_frames=frames, fps=fps, frames_indices=[round(time * fps) for time in seconds])
    stated = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=4), video_token="<|media_pad|>"
    )
    inputs = {
        "num_chunks_per_video": [len(ours.grid_thws)],
        "video_grid_thw": torch.tensor(ours.grid_thws),
        "video_metadata": [metadata],
    }
    expected = Kimi_K25Processor.replace_video_token(stated, inputs, 0)
    text = TOKENIZER.decode(ours.input_ids.tolist())
    assert text == f"<|im_user|>user<|im_middle|>{expected}\n<|im_end|>"


NAVIT_RESIZE = of_transformers("navit_resize")


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([16384, 4096, 64]), st.sampled_from([512, 16]))
@settings(max_examples=150, deadline=None)
def test_sizes_and_padding_are_those_of_transformers(width, height, limit, side):
    config = ImageConfig(patch_limit_on_one_side=side)
    resized, padded = NAVIT_RESIZE(height, width, 14, 2, limit, side)
    got = scaled_size(width, height, limit, config)
    assert got == resized[::-1]
    assert tuple(length + -length % 28 for length in got) == padded[::-1]


def test_autotokenizer_gives_our_ids_and_has_the_template(folder):
    """``AutoTokenizer`` loads tokenizer.json as it is: the same ids, and it knows the template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast) and len(tokenizer) == TOKENIZER.vocab_size
    assert tokenizer.chat_template == (folder / "chat_template.jinja").read_text()
    assert tokenizer("Ein Öl, 42\n\n  x")["input_ids"] == TOKENIZER.encode("Ein Öl, 42\n\n  x")
    assert tokenizer.convert_tokens_to_ids("<|media_pad|>") == TOKENIZER.media_pad_id
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [TOKENIZER.eos_id, TOKENIZER.im_end_id]


def test_the_shipped_code_needs_only_what_every_engine_brings():
    """transformers refuses a file if anything that it imports outside of a try block is not installed."""
    needed = {name for file in REMOTE.glob("[!_]*.py") for name in get_imports(file)} - sys.stdlib_module_names
    assert needed == {"numpy", "PIL", "torch", "transformers"}
