"""Tokens per second of the embedded engine, next to transformers' ``DeepseekV3ForCausalLM.generate``.

    python tests/benchmarks/generation_speed.py [--batch 64] [--prompt 64] [--new 64] [--threads 1] [--json]

Both have the tiny preset's text shape, random weights, the same prompts, batch, greedy decoding and count of new tokens
(no stop token), and take turns; the median of the repeats counts. The engine is also timed on requests of mixed lengths
from concurrent callers, which is how RL asks. Expect about a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

from model.config import TextConfig, preset
from model.multimodal import KimiK25
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request


def peer(config: TextConfig) -> torch.nn.Module:
    """transformers' own DeepSeek-V3 of the same shape, its fastest CPU attention."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = config.model_dump(exclude={"architectures", "model_type", "rope_scaling"})
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM._from_config(DeepseekV3Config(**fields), attn_implementation="sdpa").eval()


def seconds(run: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    got = run()
    elapsed = time.perf_counter() - start
    if got != expected:
        raise SystemExit(f"{got} tokens were generated instead of {expected}: the measurement is void")
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="sequences at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens generated for each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    config = preset("tiny")
    draw = random.Random(0)
    prompts = [draw.choices(range(768), k=options.prompt) for _ in range(options.batch)]
    total = options.batch * options.new

    engine = EmbeddedEngine(KimiK25(config).eval(), max_batch=options.batch)
    requests = [Request(ids, max_new_tokens=options.new, temperature=0.0) for ids in prompts]
    reference = peer(config.text_config)
    inputs = torch.tensor(prompts)

    def ours() -> int:
        return sum(len(completion.token_ids) for completion in asyncio.run(engine.generate(requests)))

    @torch.inference_mode()
    def theirs() -> int:
        generated = reference.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            min_new_tokens=options.new,
            max_new_tokens=options.new,
            pad_token_id=config.pad_token_id,
        )
        return generated[:, options.prompt :].numel()

    mixed = [
        Request(draw.choices(range(768), k=draw.randint(20, 120)), max_new_tokens=draw.randint(4, 60), seed=seed)
        for seed in range(4 * options.batch)
    ]

    async def callers() -> int:
        completions = await asyncio.gather(*(engine.generate([request]) for request in mixed))
        return sum(len(completion.token_ids) for (completion,) in completions)

    ours(), theirs()  # the first run allocates
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "mixed": []}
    for _ in range(options.repeats):
        times["ours"].append(seconds(ours, total))
        times["theirs"].append(seconds(theirs, total))
        times["mixed"].append(seconds(lambda: asyncio.run(callers()), sum(r.max_new_tokens for r in mixed)))
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "benchmark": "generation_speed",
        "batch": options.batch,
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "threads": options.threads,
        "tokens_per_s": round(total / median["ours"], 1),
        "peer": "transformers DeepseekV3ForCausalLM.generate",
        "peer_tokens_per_s": round(total / median["theirs"], 1),
        "ratio": round(median["theirs"] / median["ours"], 2),
        "mixed_tokens_per_s": round(sum(r.max_new_tokens for r in mixed) / median["mixed"], 1),
    }
    if not options.json:
        print(f"embedded engine      {result['tokens_per_s']:>9,} tokens/s   batch {options.batch}, greedy")
        print(f"transformers         {result['peer_tokens_per_s']:>9,} tokens/s   same shape, same batch")
        print(f"ratio                {result['ratio']:>9}")
        lengths = "20-120 in, 4-60 out, sampled"
        print(f"mixed, {len(mixed):>4} callers   {result['mixed_tokens_per_s']:>9,} tokens/s   {lengths}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
