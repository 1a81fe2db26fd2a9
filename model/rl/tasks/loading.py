"""A user's task, found by its name ``module:name`` and checked (source: ours). Runs in the task's own process."""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.boundary.errors import MoonflowError, did_you_mean
from model.data.samples.sample import ABILITIES
from model.rl.rewards import NAMES
from model.rl.tasks.task import MAX_NEW_TOKENS, TIMEOUT_S, About, Task

SPLITS = ("train", "eval")
_OURS = Path(__file__).parent


def find(name: str) -> Any:
    """What ``module:name`` names in a user's module.

    Raises:
        MoonflowError: there is no such module or name, or importing it raises.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise MoonflowError(f"{name}: importing {module} raises {told(error)}") from error
        raise MoonflowError(
            f"{name}: there is no module {error.name}: install its package, or name its folder in PYTHONPATH"
        ) from None
    except Exception as error:
        raise MoonflowError(f"{name}: importing {module} raises {told(error)}") from error
    if not hasattr(found, attribute):
        public = [one for one in vars(found) if not one.startswith("_")]
        raise MoonflowError(f"{name}: {module} has no {attribute}{did_you_mean(attribute, public)}")
    return getattr(found, attribute)


def load(name: str) -> Task:
    """The task of a name: the object in its module; of a class or function, what it returns without arguments.

    Raises:
        MoonflowError: as `find`; or calling it raises, or it is no task.
    """
    task = find(name)
    if isinstance(task, type) or not _is_task(task):
        if not callable(task):
            raise MoonflowError(f"{name} is no task: it has no methods prompt and verify")
        try:
            task = task()
        except Exception as error:
            raise MoonflowError(f"{name}: calling it without arguments raises {told(error)}") from error
    wanted = ("prompt",) if getattr(task, "reward", "") else ("prompt", "verify")
    missing = [method for method in wanted if not callable(getattr(task, method, None))]
    if missing:
        raise MoonflowError(f"{name} is no task: it has no method {' and no method '.join(missing)}")
    return task  # type: ignore[no-any-return]


def _is_task(found: Any) -> bool:
    judged = callable(getattr(found, "verify", None)) or bool(getattr(found, "reward", ""))
    return callable(getattr(found, "prompt", None)) and judged


def about(name: str, task: Task) -> About:
    """What a task says of itself.

    Raises:
        MoonflowError: an attribute has a wrong value.
    """
    ability = getattr(task, "ability", "reasoning")
    if ability not in ABILITIES:
        raise MoonflowError(f"{name}: ability is {ability!r}: choose one of {', '.join(ABILITIES)}")
    reward = getattr(task, "reward", "") or ""
    if reward and reward not in NAMES:
        raise MoonflowError(f"{name}: reward is {reward!r}: choose one of {', '.join(NAMES)}, or write verify")
    if reward and callable(getattr(task, "verify", None)):
        raise MoonflowError(f"{name}: it has a reward and a method verify: leave one of them out")

    def number(field: str, default: Any, allowed: Callable[[Any], bool], wanted: str) -> Any:
        value = getattr(task, field, default)
        if value is not None and (isinstance(value, bool) or not allowed(value)):
            raise MoonflowError(f"{name}: {field} is {value!r}: give {wanted}")
        return default if value is None else value

    def whole(value: Any) -> bool:
        return isinstance(value, int) and value >= 1

    return About(
        ability=ability,
        counts={split: _count(name, task, split) for split in SPLITS},
        max_new_tokens=number("max_new_tokens", MAX_NEW_TOKENS, whole, "a whole number of tokens, at least 1"),
        max_turns=number("max_turns", None, whole, "a whole number, at least 1"),
        timeout_s=float(
            number(
                "timeout_s",
                TIMEOUT_S,
                lambda value: isinstance(value, int | float) and math.isfinite(value) and value > 0,
                "a number of seconds above 0",
            )
        ),
        chance=number(
            "chance", None, lambda value: isinstance(value, int | float) and 0 <= value <= 1, "a score from 0 to 1"
        ),
        reward=reward,
    )


def _count(name: str, task: Task, split: str) -> int | None:
    method = getattr(task, "count", None)
    if method is None:
        return None
    try:
        count = method(split)
    except Exception as error:
        raise MoonflowError(f"{name}: count({split!r}) raises {told(error)}") from error
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise MoonflowError(f"{name}: count({split!r}) is {count!r}: return how many prompts there are")
    return count


def told(error: BaseException) -> str:
    """Type, message and place of an error of the user's code, on one line."""
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = "(its message cannot be shown)"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    theirs = [frame for frame in frames if Path(frame.filename).parent != _OURS]
    place = f" (line {theirs[-1].lineno} of {Path(theirs[-1].filename).name})" if theirs else ""
    return f"{type(error).__name__}: {said[:200]}{place}"
