"""The embedded engine's rollouts compared with transformers' ``generate``, and turns that read only what is new.

    python tests/benchmarks/rollout_speed.py [--prompts 64] [--episodes 64] [--repeats 3] [--threads 2] [--json]

Samples: 64 prompts of 16 to 128 tokens, 8 samples of each, whose lengths are skewed: half of them have at most 24
tokens, a few 200. Every sample has the length that was drawn for it, so both sides make as many tokens; tokens of
finished rows do not count. Transformers' ``DeepseekV3ForCausalLM`` has the same weights and its best batching: prompts
sorted by length, padded on the left, the samples of a prompt by ``num_return_sequences``, a batch ends with its longest
sample; batch size, expert implementation and precision are those that are fastest on a part of the prompts.

Turns: 64 episodes of four turns that begin together. A prompt has 64 to 192 tokens, a turn up to 48 and 20 on average,
a tool's result 16 to 96. The engine that keeps what it has read is compared with the same engine that reads each turn
from its first token; the completions must be equal, bit for bit. ``read_share`` is the share of the latter's time that
reading takes.

``mismatch_kl`` is the mean of e^d - d - 1 over the tokens of episodes, with d the trainer's log-prob less the
sampler's; in bfloat16 the sampler has its weights in bfloat16 and the trainer multiplies in bfloat16.

The sides take turns; medians count. Expect about five minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import os
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.tensor_names import released_tensors  # noqa: E402
from model.network.batch import Batch  # noqa: E402
from model.network.forward_context import PLAIN, ForwardContext  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.network.row_threads import RowThreads  # noqa: E402
from model.rollout.decoding import LatentCache, Reader, Unread  # noqa: E402
from model.rollout.embedded import EmbeddedEngine  # noqa: E402
from model.rollout.protocol import Completion, Request  # noqa: E402
from tests.benchmarks.model_speed import (  # noqa: E402
    DECODE_EXPERTS,
    Theirs,
    language_model,
    ratio,
    seconds,
    show,
    widened,
)

SAMPLES, LONGEST = 8, 200
BATCHES = (32, 128, 512)  # rows of a batch of the other side
TURNS = 4
VOCABULARY = 768  # without special tokens


def ids(draw: random.Random, low: int, high: int) -> list[int]:
    return draw.choices(range(VOCABULARY), k=draw.randint(low, high))


def skewed(draw: random.Random, median: int, longest: int) -> int:
    return max(1, min(longest, round(draw.lognormvariate(0, 1) * median)))


# --- Samples of prompts ---


def prompts(count: int) -> list[list[Request]]:
    """The requests of each prompt, shortest prompt first."""
    draw = random.Random(0)
    drawn = sorted((ids(draw, 16, 128) for _ in range(count)), key=len)
    lengths = [[skewed(draw, 24, LONGEST) for _ in range(SAMPLES)] for _ in drawn]
    return [
        [Request(prompt, max_new_tokens=length, seed=SAMPLES * number + n) for n, length in enumerate(each)]
        for number, (prompt, each) in enumerate(zip(drawn, lengths, strict=True))
    ]


@torch.inference_mode()
def theirs(side: Theirs, groups: Sequence[list[Request]], rows: int, pad: int) -> None:
    """Sample all requests, ``rows`` of them at a time."""
    for start in range(0, len(groups), rows // SAMPLES):
        batch = groups[start : start + rows // SAMPLES]
        longest = max(len(group[0].input_ids) for group in batch)
        missing = [longest - len(group[0].input_ids) for group in batch]
        ids_BT = torch.tensor([[pad] * m + group[0].input_ids for m, group in zip(missing, batch, strict=True)])
        mask_BT = torch.tensor([[0] * m + [1] * (longest - m) for m in missing])
        new = max(request.max_new_tokens for group in batch for request in group)
        side.model.eval().generate(  # type: ignore[operator]
            ids_BT, attention_mask=mask_BT, do_sample=True, top_k=0, num_return_sequences=SAMPLES, min_new_tokens=new,
            max_new_tokens=new, pad_token_id=pad,
        )  # fmt: skip


def sampling(model: KimiK25, count: int, repeats: int) -> dict[str, object]:
    groups, pad = prompts(count), model.config.pad_token_id
    requests = [request for group in groups for request in group]
    tensors = released_tensors(model.state_dict())
    sides = [Theirs(model.config.text_config, tensors, dtype, experts)
             for dtype, experts in itertools.product((torch.float32, torch.bfloat16), DECODE_EXPERTS)]  # fmt: skip
    some = groups[:: max(1, count // 8)]  # lengths as of all
    small = groups[:: max(1, count // 2)]
    side = min(sides, key=lambda each: seconds(lambda: theirs(each, small, SAMPLES, pad)))
    rows = min(BATCHES, key=lambda each: seconds(lambda: theirs(side, some, each, pad)))

    def ours() -> None:
        asyncio.run(EmbeddedEngine(model, len(requests)).generate(requests))

    faster, own, other = ratio(ours, lambda: theirs(side, groups, rows, pad), repeats)
    tokens = sum(request.max_new_tokens for request in requests)
    return {
        "sampled_tokens": tokens,
        "tokens_ratio": faster,
        "tokens_per_s": tokens / own,
        "peer_tokens_per_s": tokens / other,
        "peer": f"{side.name}, {rows} rows",
    }


# --- Turns of episodes ---


@dataclass(frozen=True)
class Episode:
    """A prompt, the length of each turn and the tool's result after each but the last."""

    prompt: list[int]
    lengths: list[int]
    results: list[list[int]]


def episodes(count: int) -> list[Episode]:
    draw = random.Random(1)
    return [
        Episode(ids(draw, 64, 192), [skewed(draw, 14, 48) for _ in range(TURNS)], [ids(draw, 16, 96) for _ in range(3)])
        for _ in range(count)
    ]


async def play(engine: EmbeddedEngine, episode: Episode, number: int) -> list[tuple[Request, Completion]]:
    """The turns of one episode."""
    played: list[tuple[Request, Completion]] = []
    tokens = episode.prompt
    for turn, length in enumerate(episode.lengths):
        request = Request(tokens, max_new_tokens=length, seed=TURNS * number + turn)
        (completion,) = await engine.generate([request])
        played.append((request, completion))
        tokens = [*tokens, *completion.token_ids, *episode.results[turn]] if turn < TURNS - 1 else tokens
    return played


def play_all(engine: EmbeddedEngine, drawn: Sequence[Episode]) -> list[tuple[Request, Completion]]:
    async def all_of() -> list[list[tuple[Request, Completion]]]:
        return await asyncio.gather(*(play(engine, episode, number) for number, episode in enumerate(drawn)))

    return [turn for played in asyncio.run(all_of()) for turn in played]


@torch.inference_mode()
def reading(model: KimiK25, turns: Sequence[tuple[Request, Completion]], threads: int) -> float:
    """Seconds to read the prompt of every turn from its first token, as many at once as there are episodes."""
    requests = [request for request, _ in turns]
    size, reader, pool = len(requests) // TURNS, Reader(model, None), RowThreads(threads)
    cache = LatentCache(model, size)
    cache.reserve(max(len(request.input_ids) for request in requests))
    groups = [[Unread(request, row, 0) for row, request in enumerate(requests[turn::TURNS])] for turn in range(TURNS)]
    taken = seconds(lambda: [reader.read(cache, group, pool) for group in groups])
    pool.close()
    return taken


def turns(model: KimiK25, count: int, repeats: int, threads: int) -> dict[str, object]:
    drawn, text = episodes(count), model.config.text_config

    def once(kept_tokens: int) -> list[tuple[Request, Completion]]:
        return play_all(EmbeddedEngine(model, count, kept_tokens=kept_tokens), drawn)

    kept = count * text.max_position_embeddings
    if once(kept) != once(0):
        raise SystemExit("turns read in part gave other completions than turns read anew: the measurement is void")
    faster, own, anew = ratio(lambda: once(kept), lambda: once(0), repeats)
    played = once(kept)
    read = statistics.median(reading(model, played, threads) for _ in range(repeats))
    new = [len(episode.prompt) + sum(1 + len(each) for each in episode.results) for episode in drawn]
    return {
        "turns_ratio": faster,
        "turns_per_s": len(played) / own,
        "turns_per_s_read_anew": len(played) / anew,
        "read_share": read / anew,
        "tokens_read": sum(new),
        "tokens_read_anew": sum(len(request.input_ids) for request, _ in played),
        "tokens_sampled": sum(len(completion.token_ids) for _, completion in played),
    }


# --- What the trainer computes for the same tokens ---


def trained_logprobs(model: KimiK25, request: Request, completion: Completion, context: ForwardContext) -> Tensor:
    """The trainer's log-probs [N] of the sampled tokens."""
    row_BT = torch.tensor([[*request.input_ids, *completion.token_ids]])
    first, end = len(request.input_ids), row_BT.shape[1]
    where_N = torch.arange(first - 1, end - 1)
    nothing_N = torch.zeros(end - first, dtype=torch.int64)
    batch = Batch(row_BT, torch.arange(end)[None], torch.zeros_like(row_BT), where_N, row_BT[0, first:],
                  nothing_N.bool(), nothing_N, None, [])  # fmt: skip
    return model.logprobs(batch, context=context).double()


@torch.no_grad()
def mismatch(model: KimiK25, dtype: torch.dtype, context: ForwardContext) -> float:
    """The mean divergence (nats per token) of sampler and trainer in episodes."""
    engine = EmbeddedEngine(copy.deepcopy(model).to(dtype))
    gaps = [trained_logprobs(model, request, completion, context) - torch.tensor(completion.logprobs).double()
            for request, completion in play_all(engine, episodes(16))]  # fmt: skip
    d_N = torch.cat(gaps)
    return float((d_N.exp() - d_N - 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = language_model(widened(1)).eval()
    text = model.config.text_config
    model.config.text_config = text.model_copy(update={"max_position_embeddings": 1024})
    result = {
        "benchmark": "rollout_speed",
        "threads": options.threads,
        "cores": len(os.sched_getaffinity(0)),
        **turns(model, options.episodes, options.repeats, options.threads),
        "mismatch_kl": mismatch(model, torch.float32, PLAIN),
        "mismatch_kl_bfloat16": mismatch(model, torch.bfloat16, ForwardContext(torch.bfloat16)),
        **sampling(model, options.prompts, options.repeats),
        "not_measured": "vllm_ratio: stock vLLM is not part of this script",
    }
    show(result, options.json)


if __name__ == "__main__":
    main()
