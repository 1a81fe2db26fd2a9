"""What a session's cells show, and what stays from one to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from model.codec.chat import ToolCall
from model.rl.tools.sandbox import Limits, Sandbox
from model.rl.tools.toolset import Toolset
from tests.rl.tools import in_session
from tests.samples import make_sample

LIMITS = Limits(cell_cpu_s=0.5, session_cpu_s=10, memory_mb=128, output_chars=200)
IMG = np.arange(12, dtype=np.uint8).reshape(3, 4)

cells = partial(in_session.cells, array=IMG)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as running:
        yield running


def test_the_calls_of_one_trajectory_share_their_names_and_another_trajectory_has_none_of_them() -> None:
    sample = make_sample(
        key="a-0", family="array_tool", ability="coding", modality="text", tools=["ipython"],
        messages=[{"role": "user", "content": "?"}], environment={"array": IMG.tolist()},
    )  # fmt: skip

    async def episode(toolset: Toolset, *codes: str) -> list[str]:
        async with toolset.episode(sample) as tools:
            calls = [ToolCall(f"functions.ipython:{n}", "ipython", {"code": code}) for n, code in enumerate(codes)]
            return [await tools.call(call) for call in calls]

    with Toolset(LIMITS) as toolset:
        first = asyncio.run(episode(toolset, "big = img > 4", "from scipy import ndimage as nd", "nd.label(big)[1]"))
        second = asyncio.run(episode(toolset, "big"))
    assert first == ["", "", "1"]
    assert second == ["line 1: big\nNameError: name 'big' is not defined"]


@pytest.mark.parametrize(
    "failing",
    ["y = 2\n1 / 0", "def f(:", "import os", "while True: pass", "[0] * 10**9", "raise SystemExit", "img.__class__"],
)
def test_a_cell_that_fails_leaves_what_earlier_cells_defined(sandbox: Sandbox, failing: str) -> None:
    outputs = cells(sandbox, "x = img.sum()\ndef double(n): return 2 * n", failing, "double(x)")
    assert outputs[0] == "" and "Error: " in outputs[1] + ": " and outputs[2] == "132"


def test_what_a_failing_cell_defined_before_its_error_stays(sandbox: Sandbox) -> None:
    assert cells(sandbox, "y = 2\n1 / 0\nz = 3", "y", "z")[1:] == ["2", "line 1: z\nNameError: name 'z' is not defined"]


def test_img_and_images_are_the_picture(sandbox: Sandbox) -> None:
    assert cells(sandbox, "img.shape, len(images), images[0] is img") == ["((3, 4), 1, True)"]
    colour = np.repeat(IMG[..., None], 3, axis=2)
    assert in_session.cells(sandbox, "img.shape, img[..., 0].sum()", array=colour) == ["((3, 4, 3), 66)"]


def test_images_are_the_frames_of_a_video_and_there_is_no_img(sandbox: Sandbox) -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    outputs = in_session.cells(sandbox, "[f.shape for f in images]", "int(images[1].sum())", "img", array=frames)
    assert outputs[:2] == ["[(3, 4, 3), (3, 4, 3)]", str(int(frames[1].sum()))]
    assert outputs[2].endswith("NameError: name 'img' is not defined")


def test_without_pixels_there_is_neither(sandbox: Sandbox) -> None:
    outputs = in_session.cells(sandbox, "img", "images")
    assert [output.splitlines()[-1] for output in outputs] == [
        "NameError: name 'img' is not defined",
        "NameError: name 'images' is not defined",
    ]


def test_the_last_value_is_shown_as_a_notebook_shows_it(sandbox: Sandbox) -> None:
    codes = {
        "'a'": "'a'",
        "print('a')\n'b'": "a\n'b'",
        "img[0]": "array([0, 1, 2, 3], dtype=uint8)",
        "img;": "",
        "(img) ;  # quiet": "",
        "img[0, 1]  # ;": "1",
        "';'": "';'",
        "1; 2": "2",
        "print('é');": "é",
        "x = 1": "",
        "None": "",
        "if True: 3": "",
    }
    assert dict(zip(codes, cells(sandbox, *codes), strict=True)) == codes


def test_objects_are_shown_without_their_address(sandbox: Sandbox) -> None:
    codes = {
        "lambda: 1": "<function <lambda>>",
        "def f(): yield\nprint(f, f())": "<function f> <generator object f>",
        "from PIL import Image\nImage.fromarray(img)": "<PIL.Image.Image image mode=L size=4x3>",
        "'lies at 0x7f'": "'lies at 0x7f'",
    }
    assert dict(zip(codes, cells(sandbox, *codes), strict=True)) == codes


def test_the_same_program_shows_the_same_in_every_server(sandbox: Sandbox) -> None:
    code = "set(map(str, range(20))), lambda: 1"
    with Sandbox(LIMITS) as another:
        assert cells(sandbox, code) == cells(another, code)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 / 0", "line 1: 1 / 0\nZeroDivisionError: division by zero"),
        ("print('a')\n\nimg[9]", "a\nline 3: img[9]\nIndexError: index 9 is out of bounds for axis 0 with size 3"),
        ("x = 1\r\ny = (\r\n  nothing)", "line 3: nothing)\nNameError: name 'nothing' is not defined"),
        ("def f(x): return 1 / x\nf(0)",
         "line 2: f(0)\nline 1: def f(x): return 1 / x\nZeroDivisionError: division by zero"),
        ("x = 1\ndef f(:", "line 2: def f(:\nSyntaxError: invalid syntax"),
        ("x = 1\nreturn x", "line 2: return x\nSyntaxError: 'return' outside function"),
        ("if 1:\nx = 1", "line 2: x = 1\nIndentationError: expected an indented block after 'if' statement on line 1"),
        ("x = 1\nx.__class__", "line 2: x.__class__\nNameError: names that start with an underscore are not available: "
         "__class__"),
        ("ndimage.zoom(img)", "line 1: ndimage.zoom(img)\nTypeError: zoom() missing 1 required positional argument: "
         "'zoom'"),
        ("raise SyntaxError('mine')", "line 1: raise SyntaxError('mine')\nSyntaxError: mine"),
        ("def f(): f()\nf()", "line 2: f()\nline 1: def f(): f()\nRecursionError: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_an_error_has_its_line_its_type_and_its_message(sandbox: Sandbox, code: str, shown: str) -> None:
    assert cells(sandbox, code, "1") == [shown, "1"]


def test_an_error_in_a_function_of_an_earlier_cell_names_that_cell(sandbox: Sandbox) -> None:
    outputs = cells(sandbox, "x = 0\ndef f():\n    return 1 / x", "0", "f()")
    assert outputs[2] == "line 1: f()\nline 3 of cell 1: return 1 / x\nZeroDivisionError: division by zero"


def test_a_long_line_is_shortened(sandbox: Sandbox) -> None:
    (output,) = cells(sandbox, "1 / 0  # " + "a" * 1000)
    assert output == "line 1: 1 / 0  # " + "a" * 71 + "...\nZeroDivisionError: division by zero"


def test_a_cell_that_runs_too_long_shows_no_line_because_it_might_be_any(sandbox: Sandbox) -> None:
    assert cells(sandbox, "x = 0\nwhile True:\n    x += 1") == ["TimeoutError: the cell ran too long"]


def test_output_is_cut_and_says_by_how_much(sandbox: Sandbox) -> None:
    (output,) = cells(sandbox, "print('a' * 10**6)")
    assert output == "a" * 200 + "... [999801 more characters]"


def test_after_a_long_output_the_error_is_still_shown(sandbox: Sandbox) -> None:
    error = "line 2: 1 / 0\nZeroDivisionError: division by zero"
    (output,) = cells(sandbox, "print('a' * 10**6)\n1 / 0")
    kept = 200 - len(error)
    assert output == f"{'a' * kept}... [{10**6 + 1 - kept} more characters]\n{error}"


def test_a_long_error_is_cut_and_its_end_arrives(sandbox: Sandbox) -> None:
    code = "print('b' * 10**6)\nraise ValueError('a' * 10**6)"
    (output,) = cells(sandbox, code)
    shown = "line 2: raise ValueError('a' * 10**6)\nValueError: " + "a" * 10**6
    assert output == f"... [{10**6 + 1} more characters]\n{shown[:200]}... [{len(shown) - 200} more characters]"
