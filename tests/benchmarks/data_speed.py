"""What making batches costs a training step: in the trainer's thread, and in a worker process ahead of it.

    python tests/benchmarks/data_speed.py [--folder DATA] [--steps 40] [--json]

DATA is prepare_data's output, by default that of the last ``make run`` here. Both ways train the same steps of the
tiny preset on the joint mixture, on one thread and in turns. The last line under --json is one object: seconds of a
step each way, their ratio, seconds to make a batch, and the fill of rows. Expect about three minutes on two idle CPU
cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.data.batches.folder import DataFolder  # noqa: E402
from model.data.order.family_shares import TEXT, VISION  # noqa: E402
from model.data.order.shares import blend  # noqa: E402
from model.network.config import preset  # noqa: E402
from model.network.forward_context import ForwardContext  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.precision import narrow_products  # noqa: E402

PREPARED = Path("runs/tiny/work/prepare_data/data")
ROUNDS = 3
WARM = 5  # steps not counted: the worker process starts, torch allocates


def step_seconds(data: DataFolder, steps: int, prefetch: bool, seed: int) -> list[float]:
    """Seconds from one batch asked for to the next."""
    model = new_model(preset("tiny"), seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    stream = data.mixture(blend((TEXT, 0.65), (VISION, 0.35)), tokens_per_row=256, rows=16, seed=seed)(None)
    times, begun = [], time.perf_counter()
    for batch, _ in stream.batches(WARM + steps, prefetch=prefetch):
        loss = -model.logprobs(batch, context=ForwardContext(narrow_products(torch.device("cpu")))).float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        times.append(ended - begun)
        begun = ended
    return times[WARM:]


def measure(folder: Path, steps: int) -> dict[str, float]:
    data = DataFolder(folder)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(ROUNDS):
        for prefetch in (False, True):
            times[prefetch] += step_seconds(data, steps, prefetch, seed=number)
    stream = data.mixture(blend((TEXT, 0.65), (VISION, 0.35)), tokens_per_row=256, rows=16, seed=0)(None)
    stream.next_batch()
    begun = time.perf_counter()
    for _ in range(20):
        stream.next_batch()
    making = (time.perf_counter() - begun) / 20
    in_thread, prefetched = (statistics.median(times[how]) for how in (False, True))
    return {
        "step_in_thread_s": round(in_thread, 4),
        "step_prefetched_s": round(prefetched, 4),
        "prefetched_over_in_thread": round(prefetched / in_thread, 3),
        "make_batch_s": round(making, 4),
        "fill": round(stream.figures()["data/fill"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PREPARED)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"benchmark": "data_speed"}
    if options.folder == PREPARED and not PREPARED.is_dir():
        result["not_measured"] = f"no {PREPARED}: make run first, or give --folder"
    else:
        result |= measure(options.folder, options.steps)
    if not options.json:
        for name, value in result.items():
            print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
