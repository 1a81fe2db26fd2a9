"""Numbers as kernels see them: bfloat16 by its bits, sums in float32 or wider, an exponential that vectorises."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core.errors import NumbaIRAssumptionWarning
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.boundary.private_folder import private_folder

Array = NDArray[Any]

# Sums may be reordered, so that they vectorise; infinities and NaN are kept.
FAST = {"contract", "reassoc", "nsz", "arcp"}


def cache_folder(near_source: Path, temporary: Path) -> Path | None:
    """The folder for compiled kernels; it is made if it is missing. None if no folder can be written.

    It is below the first of these that can be written: NUMBA_CACHE_DIR, ``near_source``, and this user's private folder
    in ``temporary``, which nobody else can write to, because the code in it is run. Where an earlier one holds code and
    cannot be written, as in an image, a later one starts as a copy of it.

    Numba renews code when a kernel's file changes, and does not know that a kernel holds pieces of other files.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    asked, name = os.environ.get("NUMBA_CACHE_DIR"), f"kernels-{version}"
    shipped: list[Path] = []
    for parent in (*([Path(asked)] if asked else []), near_source, None):
        with suppress(OSError, MoonflowError):
            folder = (private_folder(temporary) if parent is None else parent) / name
            if folder.is_dir() and not os.access(folder, os.W_OK):
                shipped.append(folder)
                continue
            if shipped and not folder.exists():
                _copy(shipped[0], folder)
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return None


def _copy(shipped: Path, folder: Path) -> None:
    """``folder`` with all of ``shipped``, or not at all: other processes may begin at the same moment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="copy-") as copy:
        shutil.copytree(shipped, Path(copy, folder.name), copy_function=shutil.copyfile)
        for made in (Path(copy, folder.name), *Path(copy, folder.name).rglob("*/")):
            made.chmod(0o700)  # copytree takes the rights along, and those were read-only
        with suppress(OSError):  # another process was first
            os.rename(Path(copy, folder.name), folder)


# What it says when a piece with a branch is compiled into another; the branch is compiled as it should be.
warnings.filterwarnings("ignore", category=NumbaIRAssumptionWarning)

FOLDER = cache_folder(Path(__file__).with_name("__pycache__"), Path(tempfile.gettempdir()))
if FOLDER is None:
    warnings.warn(
        "no folder for compiled kernels: every process takes seconds to compile them; set NUMBA_CACHE_DIR to "
        "one that can be written",
        stacklevel=2,
    )
numba.config.CACHE_DIR = str(FOLDER or "")  # type: ignore[attr-defined]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call and keep the machine code; other threads run meanwhile.

    A kernel that another calls is compiled into it, as a ``piece`` is. Were it not, the two would be optimised together
    when they are compiled and only linked when they are loaded, and sum in another order.
    """
    cached = FOLDER is not None
    compiled = numba.njit(nogil=True, cache=cached, fastmath=FAST, error_model="numpy", inline="always")(function)
    if FOLDER is not None:
        _one_at_a_time(compiled, FOLDER / "lock")
    return compiled


def piece(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels that is none itself."""
    return numba.njit(fastmath=FAST, error_model="numpy", inline="always")(function)


def routine(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels that they call: compiled once for all of them. For what sums nothing."""
    return numba.njit(fastmath=FAST, error_model="numpy")(function)


def _one_at_a_time(compiled: Any, lock: Path) -> None:
    """Two processes that save code of one kernel at the same time could file it under each other's types."""
    save = compiled._cache.save_overload

    def save_alone(*code: Any) -> None:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            save(*code)

    compiled._cache.save_overload = save_alone


def array(x: Tensor) -> Array:
    """The tensor's memory; bfloat16 as uint16."""
    x = x.detach() if x.requires_grad else x
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def wide(x: Any) -> Any:
    """A number to compute with: float32 of the bits of a bfloat16, else the number itself."""
    raise NotImplementedError("for kernels only")


def narrow(x: Any, like: Any) -> Any:
    """``x`` as the array ``like`` stores it; to bfloat16 it is rounded to the nearest, ties to even."""
    raise NotImplementedError("for kernels only")


def zero(like: Any) -> Any:
    """0 in the precision that sums over the array ``like`` have. A whole number or a ``float`` added to it, or to any
    float32, makes float64 of it: see ``one``."""
    raise NotImplementedError("for kernels only")


def one(like: Any) -> Any:
    """1 likewise."""
    raise NotImplementedError("for kernels only")


def rank(x: Any) -> Any:
    """An integer that orders float32 numbers as they are ordered, NaN of either sign at the ends; float64 itself.

    Maxima of integers vectorise, those of floating point numbers do not.
    """
    raise NotImplementedError("for kernels only")


def ranked(rank: Any) -> Any:
    """The number of a rank."""
    raise NotImplementedError("for kernels only")


def exp(x: Any) -> Any:
    """e^x; in float32 within 1e-5 of it (1e-6 for -9 < x < 9), and that of -87 or 88 beyond these."""
    raise NotImplementedError("for kernels only")


@overload(wide, inline="always")
def _wide(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(narrow, inline="always")
def _narrow(x, like):
    if like.dtype == types.float64:
        return lambda x, like: x
    if like.dtype == types.float32:
        return lambda x, like: np.float32(x)

    def rounded(x, like):
        bits = np.float32(x).view(np.uint32)
        odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return rounded


@overload(zero, inline="always")
def _zero(like):
    if like.dtype == types.float64:
        return lambda like: 0.0
    return lambda like: np.float32(0)


@overload(rank, inline="always")
def _rank(x):
    if x == types.float64:
        return lambda x: x

    def of_float32(x):
        bits = np.float32(x).view(np.int32)
        return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))

    return of_float32


@overload(ranked, inline="always")
def _ranked(rank):
    if rank == types.float64:
        return lambda rank: rank
    return lambda rank: np.int32(rank ^ np.int32(np.int32(rank >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(
        np.float32
    )


@overload(one, inline="always")
def _one(like):
    if like.dtype == types.float64:
        return lambda like: 1.0
    return lambda like: np.float32(1)


LOG2_E = np.float32(1 / math.log(2))
LN2 = np.float32(math.log(2))
TAYLOR = tuple(np.float32(1 / math.factorial(n)) for n in range(7))
SMALLEST, LARGEST = np.float32(-87), np.float32(88)


@overload(exp, inline="always")
def _exp(x):
    if x == types.float64:
        return lambda x: math.exp(x)

    def by_taylor(x):
        held = SMALLEST if x < SMALLEST else (LARGEST if x > LARGEST else x)
        power = np.floor(held * LOG2_E + np.float32(0.5))
        r = held - power * LN2
        series = TAYLOR[5] + r * TAYLOR[6]
        series = TAYLOR[4] + r * series
        series = TAYLOR[3] + r * series
        series = TAYLOR[2] + r * series
        series = TAYLOR[1] + r * series
        series = TAYLOR[0] + r * series
        return series * np.int32(np.int32(np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)

    return by_taylor
