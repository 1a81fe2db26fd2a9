"""A checkpoint on many more held-out tasks than an evaluation step takes, drawn from the generators.

    python tests/benchmarks/held_out.py [--checkpoint runs/tiny/work/serve/checkpoint] [--tasks 600] [--json]

Greedy, one suite after the other, each with its own limits. With 600 tasks a standard error is 0.02 at most, where the
step's 64 leave 0.06. By default it takes what the last `make run` served; without a run it says so and measures
nothing.
Expect about a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.data.families import FAMILIES  # noqa: E402
from model.evals.scorer import Evaluation  # noqa: E402
from model.evals.tasks import SUITES  # noqa: E402
from model.hf import load_image_config, load_model  # noqa: E402
from model.rl.tools.toolset import Toolset  # noqa: E402
from model.rollout.embedded import EmbeddedEngine  # noqa: E402
from model.tokenizer import Tokenizer  # noqa: E402

MEASURED = ("digit_string", "digit_count", "fact_qa", "array_tool", "array_tool_image")
SERVED = Path("runs/tiny/work/serve/checkpoint")


def measure(checkpoint: Path, tasks: int) -> dict[str, dict[str, float]]:
    model = load_model(checkpoint)
    engine, found = EmbeddedEngine(model, 128), {}
    with Toolset() as toolset:
        evaluation = Evaluation(Tokenizer.load(checkpoint), load_image_config(checkpoint), toolset, 0.0, seed=0)
        for name in MEASURED:
            samples = [FAMILIES[SUITES[name].family].sample(0, "eval", index) for index in range(tasks)]
            context = model.config.text_config.max_position_embeddings
            scores = asyncio.run(evaluation.score(engine, engine, {name: samples}, [SUITES[name]], context))
            found[name] = {"value": round(scores[name].value, 4), "stderr": round(scores[name].stderr, 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SERVED, help="a checkpoint folder")
    parser.add_argument("--tasks", type=int, default=600, help="of each suite")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"benchmark": "held_out", "tasks": options.tasks}
    if options.checkpoint == SERVED and not SERVED.is_dir():
        result["not_measured"] = f"no {SERVED}: make run first, or give --checkpoint"
    else:
        found = measure(options.checkpoint, options.tasks)
        result |= found
        if not options.json:
            for name, score in found.items():
                print(f"{name:<18}{score['value']:.3f} +- {score['stderr']:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
