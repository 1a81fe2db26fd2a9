"""What programs import, and that it computes in a session what it computes outside, without a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import scipy.ndimage

from model.rl.tools.sandbox import Limits, Sandbox
from tests.rl.tools import in_session

IMG = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
LIMITS = Limits(cell_cpu_s=2, output_chars=100_000)

cells = partial(in_session.cells, array=IMG)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as running:
        yield running


@pytest.mark.parametrize(
    "code",
    [
        "ndimage.zoom(np.eye(2), 2).shape",
        "import numpy\nimport scipy.ndimage\nscipy.ndimage.zoom(numpy.eye(2), 2).shape",
        "from scipy import ndimage\nndimage.zoom(np.eye(2), 2).shape",
        "import scipy\nscipy.ndimage.zoom(np.eye(2), 2).shape",
        "import scipy.ndimage as ndi\nndi.zoom(np.eye(2), 2).shape",
        "from scipy.ndimage import zoom\nzoom(np.eye(2), 2).shape",
        "import math\nfrom math import *\n(int(sqrt(16)), math.floor(4.5))",
        "from PIL import Image, ImageOps, ImageFilter, ImageDraw\nImage.new('L', (4, 4)).size",
        "import PIL.Image\nPIL.Image.new('L', (4, 4)).size",
        "import PIL.Image as im\nim.new('L', (4, 4)).size",
        "from PIL.Image import new\nnew('L', (4, 4)).size",
        "import PIL\nPIL.Image.new('L', (4, 4)).size",
    ],
)
def test_the_usual_imports_work(sandbox: Sandbox, code: str) -> None:
    assert cells(sandbox, code) == ["(4, 4)"]


ONLY = "ImportError: only math, numpy, scipy.ndimage and PIL (Image, ImageDraw, ImageFilter, ImageOps) can be imported"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import json", f"{ONLY} here, not json"),
        ("import scipy.stats", "ImportError: of scipy, only ndimage can be imported here; stats cannot"),
        ("from scipy import stats", "ImportError: of scipy, only ndimage can be imported here; stats cannot"),
        ("from scipy import LowLevelCallable", "ImportError: of scipy, only ndimage can"),
        ("from scipy.ndimage import test", "ImportError: not all of scipy.ndimage can be imported here; test cannot"),
        ("import scipy\nscipy.special", "AttributeError: module 'scipy' has no attribute 'special'"),
        ("from PIL import ImageFont", "ImportError: of PIL, only Image, ImageDraw, ImageFilter, ImageOps can be"),
        ("import PIL.ImageShow", "ImportError: of PIL, only Image, ImageDraw, ImageFilter, ImageOps can be"),
        ("from PIL.Image import open", "ImportError: not all of PIL.Image can be imported here; open cannot"),
        ("from PIL import Image\nImage.open('a')", "AttributeError: module 'PIL.Image' has no attribute 'open'"),
        ("from PIL import Image\nImage.core", "AttributeError: module 'PIL.Image' has no attribute 'core'"),
        ("from PIL import Image\nImage.new('L', (1, 1)).show()", "NameError: show is not available here"),
        ("from PIL import Image\nImage.new('L', (1, 1)).im", "NameError: im is not available here"),
        ("from PIL import *", "NameError: import * from PIL is not available here"),
    ],
)
def test_nothing_else_can_be_imported(sandbox: Sandbox, code: str, error: str) -> None:
    (output,) = cells(sandbox, code)
    assert output.splitlines()[-1].startswith(error)


NDIMAGE = (
    "n.gaussian_filter(g, 1.5)", "n.sobel(g.astype(float), 0)", "n.median_filter(g, 3)", "n.uniform_filter(g, 3)",
    "n.label(g > 128)[1]", "n.center_of_mass(g)", "n.find_objects(g > 250, 1)", "n.zoom(g, 2)", "n.rotate(g, 30)",
    "n.shift(g, 1.5)", "n.binary_fill_holes(g > 90)", "n.binary_dilation(g > 200, iterations=2)",
    "n.distance_transform_edt(g > 90)", "n.distance_transform_cdt(g > 90)", "n.maximum_position(g)",
    "n.sum_labels(g, g > 9, [0, 1])", "n.generic_filter(g, lambda w: w.max(), 3)", "n.convolve(g, np.ones((3, 3)))",
    "n.map_coordinates(g, [[1.5], [2.5]])", "n.affine_transform(g, np.eye(2))", "n.fourier_gaussian(g, 2.0)",
    "n.spline_filter(g)", "n.watershed_ift(g, n.label(g > 250)[0])", "n.grey_opening(g, 3)",
    "n.geometric_transform(g, lambda at: (at[0], at[1]))", "n.percentile_filter(g, 20, 3)", "n.laplace(g)",
    "n.labeled_comprehension(g, g > 9, [0, 1], len, int, 0)", "n.value_indices(g % 3)[1]",
    "n.vectorized_filter(g, np.max, size=3)", "n.morphological_gradient(g, 3)", "n.histogram(g, 0, 255, 5)",
)  # fmt: skip
PICTURES = (
    "p.resize((9, 7))", "p.convert('L')", "p.convert('HSV')", "p.convert('RGBA')", "p.convert('1')", "p.quantize(5)",
    "p.crop((1, 2, 9, 8))", "p.rotate(30, expand=True)", "p.rotate(9, fillcolor='hsl(120, 50%, 50%)')", "p.reduce(2)",
    "p.transpose(Image.FLIP_LEFT_RIGHT)", "p.transform((9, 9), Image.Transform.AFFINE, (1, 0, 2, 0, 1, 0))",
    "p.filter(ImageFilter.GaussianBlur(1))", "p.filter(ImageFilter.Kernel((3, 3), [1] * 9))", "p.getchannel('R')",
    "p.filter(ImageFilter.FIND_EDGES)", "p.filter(ImageFilter.MedianFilter(3))", "Image.blend(p, p.rotate(90), 0.5)",
    "Image.merge('RGB', p.split()[::-1])", "Image.eval(p, lambda v: 255 - v)", "p.point(lambda v: v // 2)",
    "Image.composite(p, p.rotate(180), p.convert('1'))", "Image.new('RGB', (3, 3), 'red')", "p.entropy()",
    "Image.alpha_composite(p.convert('RGBA'), p.convert('RGBA'))", "p.convert('L').getcolors()", "p.getbbox()",
    "ImageOps.autocontrast(p)", "ImageOps.invert(p)", "ImageOps.equalize(p)", "ImageOps.fit(p, (9, 9))",
    "ImageOps.colorize(p.convert('L'), 'black', 'white')", "ImageOps.expand(p, 2, 'blue')", "ImageOps.posterize(p, 2)",
    "ImageOps.pad(p, (40, 40))", "ImageOps.solarize(p)", "p.getextrema()", "p.getpixel((3, 4))", "p.tobytes()",
    "p.quantize(3).getpalette()", "ImageDraw.Draw(p).rectangle((1, 1, 5, 5), fill='red')",
    "ImageDraw.Draw(p).line((0, 0, 9, 9), fill=(1, 2, 3), width=3)", "ImageDraw.Draw(p).text((0, 0), 'a')",
    "ImageDraw.floodfill(p, (0, 0), (9, 9, 9))",
)  # fmt: skip


@pytest.mark.parametrize(
    ("start", "given", "expressions"),
    [
        ("n, g = ndimage, img[..., 0]", "g", NDIMAGE),
        ("from PIL import Image, ImageDraw, ImageFilter, ImageOps\np = Image.fromarray(img)", "p", PICTURES),
    ],
    ids=["ndimage", "PIL"],
)
def test_operations_give_in_a_session_what_they_give_outside(
    sandbox: Sandbox, start: str, given: str, expressions: tuple[str, ...]
) -> None:
    """Each is the first of its session, so that none finds loaded what another one needed."""
    for expression in expressions:
        outside: dict[str, object] = {"np": np, "ndimage": scipy.ndimage, "img": IMG.copy()}
        exec(start, outside)
        shown = f"np.asarray({expression}).tolist(), np.asarray({given}).tolist()"
        assert cells(sandbox, f"{start}\n{shown}") == [repr(eval(shown, outside))], expression
