"""What programs of a policy import: NumPy, math, ``scipy.ndimage``, and PIL's operations on pictures in memory (ours).

All of it is loaded here, before the server forks, because a session may open no file. Of SciPy and PIL programs see
modules that are made here, with the names that are listed and no other: nothing that opens, saves or shows a file,
loads a font or a plug-in, or takes a C function to call. A picture's own methods stay (``save`` is one of them); the
kernel refuses what they would reach for (`model.rl.tools.isolation`).
"""

from __future__ import annotations

import builtins
import colorsys  # noqa: F401  (PIL imports it, and some modules of its own, when it first needs them)
import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.fft
import numpy.linalg
import numpy.ma
import numpy.polynomial
import numpy.random  # noqa: F401
import PIL.ImageColor
import PIL.ImageFile
import PIL.ImagePalette  # noqa: F401
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

WHOLE = ("math", "numpy")  # modules that are not made here
IMPORTABLE = "math, numpy, scipy.ndimage and PIL (Image, ImageDraw, ImageFilter, ImageOps)"

_IMAGE = (
    "Image", "alpha_composite", "blend", "composite", "eval", "fromarray", "linear_gradient", "merge", "new",
    "radial_gradient", "Dither", "Palette", "Quantize", "Resampling", "Transform", "Transpose", "AFFINE", "BICUBIC",
    "BILINEAR", "BOX", "EXTENT", "FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "HAMMING", "LANCZOS", "MESH", "NEAREST",
    "PERSPECTIVE", "QUAD", "ROTATE_180", "ROTATE_270", "ROTATE_90", "TRANSPOSE", "TRANSVERSE",
)  # fmt: skip
_OPERATIONS = (
    "autocontrast", "colorize", "contain", "cover", "crop", "deform", "equalize", "expand", "fit", "flip", "grayscale",
    "invert", "mirror", "pad", "posterize", "scale", "solarize",
)  # fmt: skip
_FILTERS = (
    "BLUR", "BoxBlur", "CONTOUR", "Color3DLUT", "DETAIL", "EDGE_ENHANCE", "EDGE_ENHANCE_MORE", "EMBOSS",
    "FIND_EDGES", "GaussianBlur", "Kernel", "MaxFilter", "MedianFilter", "MinFilter", "ModeFilter", "RankFilter",
    "SHARPEN", "SMOOTH", "SMOOTH_MORE", "UnsharpMask",
)  # fmt: skip


def _made(name: str, source: Any, names: Iterable[str]) -> ModuleType:
    """A module with some names of another one."""
    made = ModuleType(name)
    vars(made).update({each: getattr(source, each) for each in names})
    return made


def _made_modules() -> dict[str, ModuleType]:
    """Dotted name -> module, packages with the modules in them."""
    inner = (
        _made("scipy.ndimage", ndimage, ndimage.__all__),
        _made("PIL.Image", Image, _IMAGE),
        _made("PIL.ImageDraw", ImageDraw, ("Draw", "floodfill")),
        _made("PIL.ImageFilter", ImageFilter, _FILTERS),
        _made("PIL.ImageOps", ImageOps, _OPERATIONS),
    )
    modules = {package: ModuleType(package) for package in ("scipy", "PIL")}
    for module in inner:
        package, _, leaf = module.__name__.partition(".")
        setattr(modules[package], leaf, module)
        modules[module.__name__] = module
    return modules


_MADE = _made_modules()


def preloaded() -> dict[str, Any]:
    """The modules that a session has without an import, under their usual names."""
    return {"np": np, "math": math, "ndimage": _MADE["scipy.ndimage"]}


def import_module(
    name: str, globals_: Any = None, locals_: Any = None, fromlist: Iterable[str] | None = (), level: int = 0
) -> Any:
    """What ``import`` calls in a program; the arguments are those of ``__import__``.

    Raises:
        ImportError: the module, or a name that is imported from it, is not available.
    """
    root, _, rest = name.partition(".")
    if root in WHOLE:  # NumPy's C code imports its private modules through this too
        return builtins.__import__(name, globals_, locals_, tuple(fromlist or ()), level)
    if root not in _MADE:
        raise ImportError(f"only {IMPORTABLE} can be imported here, not {name}")
    module = _MADE.get(name)
    missing = rest if module is None else next((each for each in fromlist or () if each not in vars(module)), "")
    if module is None or missing:
        there = ", ".join(each for each in sorted(vars(_MADE[root])) if not each.startswith("_"))
        where = f"of {root}, only {there}" if module is None or name == root else f"not all of {name}"
        raise ImportError(f"{where} can be imported here; {missing} cannot")
    return module if fromlist else _MADE[root]
