"""What a wording that training never shows costs a model that thinks, by kind of problem.

    python tests/benchmarks/wordings.py CHECKPOINT [--problems 240] [--json]

A checkpoint is a folder, a run's folder or an address, as for ``moonflow evaluate``: one that has learned the mixture
``thinking``. It answers held-out problems of the families ``free_arithmetic`` and ``free_reading``, greedily. About
half of them have a wording of training, the others the one that is held out; numbers and words are new in both.
Expect about a minute for the preset tiny on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.load import load_model
from model.codec.chat import parse_assistant
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.thinking import FREE, KINDS
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_prompt
from model.evals.scorer import measuring_engine
from model.network.served import as_served
from model.rl.rewards import score
from model.rollout.protocol import Request, RolloutEngine
from pipelines.checkpoint_source import located

SEED, ROOM = 7, 200  # of the problems; tokens of an answer
KNOWN, HELD_OUT = "known", "held_out"
WORDINGS = {kind.name: kind.wordings for kind in KINDS}


def worded(sample: Sample, kind: str) -> str:
    """Whether training shows the wording of a problem. One that both could have written is taken as known."""
    question = sample.messages[0]["content"]

    def wrote(template: str) -> bool:
        parts = re.split(r"(\{\w+\})", template)
        pattern = "".join(".+?" if part.startswith("{") else re.escape(part) for part in parts)
        return re.fullmatch(pattern, question, re.DOTALL) is not None

    *shown, last = WORDINGS[kind]
    return HELD_OUT if wrote(last) and not any(map(wrote, shown)) else KNOWN


async def answers(samples: Sequence[Sample], engine: RolloutEngine, tokenizer: Tokenizer) -> list[float]:
    """The rewards of greedy answers."""
    prompts = [tokenize_prompt(sample, tokenizer, ImageConfig(), thinking=True) for sample in samples]
    requests = [
        Request(prompt.input_ids.tolist(), None, [], ROOM, 0.0, stop_token_ids=(tokenizer.im_end_id,))
        for prompt in prompts
    ]
    opened = tokenizer.token_id("<think>")
    said = [parse_assistant([opened, *each.token_ids], tokenizer) for each in await engine.generate(requests)]
    return [
        0.0 if turn.error else score(sample.reward, turn.content, sample.answer)
        for turn, sample in zip(said, samples, strict=True)
    ]


def measured(checkpoint: str, problems: int) -> dict[str, Any]:
    """Family -> accuracy and number of problems, by whether the wording is known, and by kind."""
    found: dict[str, Any] = {}
    with located(checkpoint, swarm=False) as source:
        tokenizer = Tokenizer.load(source.folder)
        engine = measuring_engine(as_served(load_model(source.folder).eval(), "full"), 64)
    for family in FREE:
        samples = [family.sample(SEED, "eval", index) for index in range(problems)]
        right: dict[str, dict[str, list[float]]] = {KNOWN: defaultdict(list), HELD_OUT: defaultdict(list)}
        for sample, reward in zip(samples, asyncio.run(answers(samples, engine, tokenizer)), strict=True):
            kind = sample.key.split("-")[1]
            right[worded(sample, kind)][kind].append(reward)
        found[family.name] = {
            name: {
                "accuracy": round(mean(reward for kind in kinds.values() for reward in kind), 3),
                "problems": sum(map(len, kinds.values())),
                "kinds": {kind: round(mean(rewards), 3) for kind, rewards in sorted(kinds.items())},
            }
            for name, kinds in right.items()
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a checkpoint's folder, a run's folder, or an address")
    parser.add_argument("--problems", type=int, default=240, help="held-out problems of each family")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"benchmark": "wordings"}
    if options.checkpoint is None:
        result["not_measured"] = "no checkpoint to measure: give CHECKPOINT"
    else:
        result |= measured(options.checkpoint, options.problems)
    if not options.json:
        for name, figures in result.items():
            print(f"{name}: {figures}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
