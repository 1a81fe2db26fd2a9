"""How often a trained judge is right, and writes what decides, by kind of wish, held out and on training's split.

    python tests/benchmarks/judging.py CHECKPOINT [--tasks 400] [--wrong 2] [--json]

A checkpoint is a folder, a run's folder or an address, as for ``moonflow evaluate``: one that has learned the mixture
``judged``. It judges greedily. Held-out tasks have other things, and half of their wordings, openers, marks and pleas
are held out too; of training's split the tasks are new, and may be some that it has read.
Expect about two minutes for the preset tiny on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.load import load_model
from model.codec.chat import parse_assistant
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_prompt
from model.evals.scorer import measuring_engine
from model.network.served import as_served
from model.rl.judges.judge import ANSWER_TOKENS
from model.rl.rewards import score
from model.rollout.protocol import Request, RolloutEngine
from pipelines.checkpoint_source import located

SEED = 7  # of the tasks
JUDGING = ("judge_pair", "judge_rubric", "judge_list")


async def judged(samples: Sequence[Sample], engine: RolloutEngine, tokenizer: Tokenizer) -> list[str]:
    """What the judge writes; "" if it does not end."""
    requests = [
        Request(ids, None, [], ANSWER_TOKENS, 0.0, stop_token_ids=(tokenizer.im_end_id,))
        for ids in (tokenize_prompt(sample, tokenizer, ImageConfig()).input_ids.tolist() for sample in samples)
    ]
    said = await engine.generate(requests)
    return [parse_assistant(one.token_ids, tokenizer).content if one.finish_reason == "stop" else "" for one in said]


def kind_of(sample: Sample) -> str:
    """The kind of the wish; of a rubric of several wishes, their number."""
    _, *kinds, _ = sample.key.split("-")
    return kinds[0] if len(kinds) == 1 else f"{len(kinds)} wishes"


def figures(samples: Sequence[Sample], said: Sequence[str]) -> dict[str, Any]:
    """Accuracy, all in all and by kind; ``as_reference``: the share whose grounds are the reference's too."""
    right, same = defaultdict[str, list[float]](list), list[bool]()
    for sample, text in zip(samples, said, strict=True):
        right[kind_of(sample)].append(score(sample.reward, text, sample.answer))
        same.append(text == sample.messages[-1]["content"])
    return {
        "accuracy": round(mean(one for kind in right.values() for one in kind), 3),
        "as_reference": round(mean(same), 3),
        "tasks": len(samples),
        "kinds": {kind: round(mean(rewards), 3) for kind, rewards in sorted(right.items())},
    }


def wrong_ones(samples: Sequence[Sample], said: Sequence[str], most: int) -> Iterator[str]:
    """The first wrong answers of each kind, with their prompts, to be read."""
    shown = defaultdict[str, int](int)
    for sample, text in zip(samples, said, strict=True):
        if score(sample.reward, text, sample.answer) < 1.0 and shown[kind_of(sample)] < most:
            shown[kind_of(sample)] += 1
            reference = sample.messages[-1]["content"]
            yield f"{sample.key}\n{sample.messages[0]['content']}\n  reference: {reference!r}\n  judge:     {text!r}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a checkpoint's folder, a run's folder, or an address")
    parser.add_argument("--tasks", type=int, default=400, help="of each family and split")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each kind")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"benchmark": "judging"}
    if options.checkpoint is None:
        result["not_measured"] = "no checkpoint to measure: give CHECKPOINT"
    else:
        with located(options.checkpoint, swarm=False) as source:
            tokenizer = Tokenizer.load(source.folder)
            engine = measuring_engine(as_served(load_model(source.folder).eval(), "full"), 64)
        for split in ("eval", "train"):
            for name in JUDGING:
                samples = [FAMILIES[name].sample(SEED, split, index) for index in range(options.tasks)]
                said = asyncio.run(judged(samples, engine, tokenizer))
                result[f"{name}/{split}"] = figures(samples, said)
                if not options.json:
                    print("\n".join(wrong_ones(samples, said, options.wrong)))
    if not options.json:
        for name, measured in result.items():
            print(f"{name}: {measured}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
