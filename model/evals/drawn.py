"""Held-out tasks without a data folder, and which of them a model can be asked (source: ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from model.boundary.errors import MoonflowError, did_you_mean
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_opening, tokenize_prompt
from model.evals.suites import SUITES, Suite
from model.swarm.baselines import agent_tools


def chosen(names: Sequence[str], own: Sequence[str] = ()) -> list[Suite]:
    """The suites of these names, in the order of the table; all if there are none.

    Args:
        own: names of the user's tasks, which are suites too and are not in the table.

    Raises:
        MoonflowError: there is no suite of a name.
    """
    known = [*SUITES, *own]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise MoonflowError(f"there is no suite {name[:100]!r}{near}; the suites are {', '.join(known)}")
    return [suite for suite in SUITES.values() if not names or suite.name in names]


def drawn(suite: Suite, count: int, seed: int) -> list[Sample]:
    """The first ``suite.tasks(count)`` held-out tasks of a suite, as prepare_data makes them from this seed."""
    family = FAMILIES[suite.family]
    return [suite.task(family.sample(seed, "eval", index)) for index in range(suite.tasks(count))]


def obstacle(
    suite: Suite,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    image_config: ImageConfig,
    *,
    context: int,
    vocabulary: int,
    videos: bool,
    documents: bool,
) -> str:
    """Why a model cannot be asked these tasks; "" if it can. A single broken task is none: its episode fails.

    A document that is longer than the context is none either, unless all are: it counts as not answered.

    Args:
        context: tokens of prompt and answer together.
        vocabulary: number of tokens that the model knows.
        videos, documents: whether its engine takes videos, and prompts that are no chats.
    """
    if suite.mode == "document" and not documents:
        return "its tasks are documents to complete, which the endpoint is not sent"
    tokenized = tokenize_opening if suite.mode == "document" else tokenize_prompt
    broken: list[str] = []
    for sample in samples:
        agent = suite.mode in ("single", "swarm")
        task = replace(sample, tools=agent_tools(sample, suite.mode)) if agent else sample
        try:
            prompt = tokenized(task, tokenizer, image_config, pixels=False)
        except MoonflowError as error:
            broken.append(str(error))
            continue
        if (length := len(prompt.input_ids)) >= context:
            told = f"a prompt of {length} tokens leaves no room in the context of {context}"
            if suite.mode != "document":
                return told
            broken.append(told)
        if (largest := int(prompt.input_ids.max())) >= vocabulary:
            return f"the tokenizer has token {largest}, but the model knows only {vocabulary}"
        if not videos and any(frames != 1 for frames, _, _ in prompt.grid_thws):
            return "its tasks show videos, which the endpoint is not sent"
    return broken[0] if len(broken) == len(samples) else ""
