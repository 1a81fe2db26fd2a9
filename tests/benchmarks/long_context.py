"""What mid-training adds to the context: is a number found in a long text, and a digit in a long video?

    python tests/benchmarks/long_context.py --checkpoint FOLDER [--seeds 3] [--tasks 100] [--json]

FOLDER is the checkpoint of a run's joint_pretrain (on the machine of the run, ``runs/tiny/work/cache`` holds it under
the digest of its manifest); without it nothing is measured. There are held-out texts and videos of two kinds:
``within`` the window of the checkpoint, and ``beyond`` it, where the question comes more tokens after the number or
digit than that window has, but fits the window after mid-training. All are asked before and after the step mid_train,
which runs with its defaults on newly generated data.

The control is trained as long on the same mixture in the old window, so without YaRN and without the samples that need
it: if it finds nothing far away, this is not for lack of practice. Decoding is greedy; an answer counts if all its
tokens are right.

Chance is a guess among 9,000 numbers and among ten digits. Expect three minutes per seed on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.mid_train.config import Config  # noqa: E402
from components.mid_train.stage import phases  # noqa: E402
from model.checkpoint.file_names import TOKENIZER_FILES  # noqa: E402
from model.checkpoint.folder import load_parent  # noqa: E402
from model.codec.image import ImageConfig  # noqa: E402
from model.codec.tokenizer import Tokenizer  # noqa: E402
from model.data.batches.folder import DataFolder  # noqa: E402
from model.data.batches.packing import pack  # noqa: E402
from model.data.families import FAMILIES, needle, video_needle  # noqa: E402
from model.data.order.family_shares import LONG_TEXT, LONG_VISION  # noqa: E402
from model.data.samples.shards import write_shard  # noqa: E402
from model.data.samples.tokenize import TokenizedSample, tokenize  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.network.yarn import original_window  # noqa: E402
from model.train.loop import train  # noqa: E402
from model.train.phase import Phase  # noqa: E402

SAMPLES = 400  # training samples of each family: more than the step uses of any family of long samples
CHANCE = {"text": 1 / 9000, "video": 0.1}
IMAGES = ImageConfig()


class DiscardingContext:
    """The context of a step that keeps no checkpoints and no metrics."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.checkpoints = self.metrics = self.progress = self

    def latest(self) -> None:
        return None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> DiscardingContext:
        return self

    def publish(self, folder: Path, added: Sequence[object] = ()) -> None: ...
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def update(self, done: int, total: int, **figures: float) -> None: ...


def training_data(folder: Path, checkpoint: Path) -> DataFolder:
    """Train shards of mid-training's families, and the checkpoint's tokenizer."""
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    families = {}
    for name in {**LONG_TEXT, **LONG_VISION}:
        shard = f"{name}.tar"
        (folder / shard).write_bytes(write_shard(FAMILIES[name].sample(0, "train", n) for n in range(SAMPLES)))
        families[name] = {"train": [{"shard": shard, "samples": SAMPLES}]}
    (folder / "index.json").write_text(json.dumps({"families": families, "image": IMAGES.model_dump(mode="json")}))
    return DataFolder(folder)


def text_task(rng: np.random.Generator, window: int, tokenizer: Tokenizer) -> tuple[TokenizedSample, int]:
    """A text of up to about ``window`` tokens, and how many tokens before the answer its number begins."""
    sample = needle.needle_sample(rng, "eval", 0, int(rng.integers(needle.SHORTEST, 2 * window)))
    read = tokenize(sample, tokenizer, IMAGES)
    answer = int(read.loss_mask.nonzero()[0])
    ids = read.input_ids.tolist()
    number = ids[answer : answer + 4]
    return read, answer - next(n for n in range(answer) if ids[n : n + 4] == number)


def video_task(rng: np.random.Generator, window: int, tokenizer: Tokenizer) -> tuple[TokenizedSample, int]:
    """A video of up to about ``window`` tokens, and how many tokens before the answer its digit is shown."""
    sample = video_needle.video_needle_sample(rng, "eval", 0, int(rng.integers(video_needle.SHORTEST, window // 18)))
    read = tokenize(sample, tokenizer, IMAGES)
    assert read.pixel_values is not None
    chunks = read.pixel_values.split([t * h * w for t, h, w in read.grid_thws])
    shown = max(range(len(chunks)), key=lambda n: float(chunks[n].std()))
    pads = (read.input_ids == tokenizer.media_pad_id).nonzero().flatten()
    return read, int(read.loss_mask.nonzero()[0]) - int(pads[shown])


Draw = Callable[[np.random.Generator, int, Tokenizer], tuple[TokenizedSample, int]]
KINDS: dict[str, Draw] = {"text": text_task, "video": video_task}


def tasks(draw: Draw, seed: int, count: int, nearest: int, window: int, tokenizer: Tokenizer) -> list[TokenizedSample]:
    """``count`` held-out samples of at most ``window`` tokens whose evidence is more than ``nearest`` tokens before the
    answer; with ``nearest`` 0, anywhere in the sample.
    """

    def drawn() -> Iterator[TokenizedSample]:
        rng = np.random.default_rng([seed, nearest])
        while True:
            read, distance = draw(rng, window, tokenizer)
            if distance > nearest and len(read.input_ids) <= window:
                yield read

    return [read for read, _ in zip(drawn(), range(count), strict=False)]


@torch.no_grad()
def found(model: KimiK25, samples: Sequence[TokenizedSample], pad_id: int) -> float:
    """Share of samples that greedy decoding answers: every token of the answer has the largest probability."""
    model.eval()
    right = 0
    for start in range(0, len(samples), 10):
        few = samples[start : start + 10]
        batch = pack(few, pad_id)
        hit_N = model(batch).argmax(-1) == batch.targets_N
        # The loss also covers the end of the document, which is not a part of the answer.
        for number, sample in enumerate(few):
            hits = hit_N[batch.sample_N == number]
            right += bool(hits[: 4 if sample.pixel_values is None else 1].all())
    model.train()
    return right / len(samples)


def in_old_window(grown: Sequence[Phase], seen: int) -> list[Phase]:
    """The same phases with as many tokens, in rows of ``seen`` tokens and without extending the window."""
    return [
        replace(
            phase,
            window=0,
            stream=replace(phase.stream, tokens_per_row=seen, rows=phase.stream.rows * phase.window // seen),
        )
        for phase in grown
    ]


def measure(checkpoint: Path, seed: int, count: int, control: bool, talk: bool) -> dict[str, float]:
    tokenizer = Tokenizer.load(checkpoint)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = training_data(folder, checkpoint)
        seen = original_window(load_parent(checkpoint, tokenizer))
        recipe = phases(Config(seed=2 + 1000 * seed), data, seen)
        window = recipe[-1].window
        asked = {
            (kind, place): tasks(draw, seed, count, nearest, longest, tokenizer)
            for kind, draw in KINDS.items()
            for place, nearest, longest in (("within", 0, seen), ("beyond", seen, window))
        }
        for when in ("before", "after", "control")[: 3 if control else 2]:
            model = load_parent(checkpoint, tokenizer)
            if when != "before":
                torch.manual_seed(seed)
                train(
                    model, recipe if when == "after" else in_old_window(recipe, seen), folder, DiscardingContext(folder)
                )
            for (kind, place), samples in asked.items():
                name = f"{kind}_{when}_{place}"
                figures[name] = found(model, samples, tokenizer.pad_id)
                if talk:
                    print(f"seed {seed} {name:<24}{figures[name]:.3f}", flush=True)
    return figures


def tokens_of_frames(tokenizer: Tokenizer) -> dict[str, float]:
    """Tokens of an image as large as a frame, and of a chunk of 4 frames; frames per token of a video."""
    video = video_needle.video_needle_sample(np.random.default_rng(0), "eval", 0, 8)
    read = tokenize(video, tokenizer, IMAGES)
    pads = int((read.input_ids == tokenizer.media_pad_id).sum())
    frames = sum(t for t, _, _ in read.grid_thws)
    _, h, w = read.grid_thws[0]
    image = h * w // IMAGES.merge_kernel_size**2
    return {
        "tokens_per_image": image,
        "tokens_per_chunk": pads / len(read.grid_thws),
        "frames_per_token": frames / pads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of a joint_pretrain checkpoint")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=100, help="of each kind and distance")
    parser.add_argument("--no-control", action="store_true", help="leave the training in the old window out")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"benchmark": "long_context", "tasks": options.tasks, "seeds": options.seeds}
    if options.checkpoint is None:
        result["not_measured"] = "no checkpoint to start from: give --checkpoint"
        print(json.dumps(result))
        return
    result |= tokens_of_frames(Tokenizer.load(options.checkpoint))
    result |= {f"chance_{kind}": round(chance, 4) for kind, chance in CHANCE.items()}
    by_seed = []
    for seed in range(options.seeds):
        by_seed.append(measure(options.checkpoint, seed, options.tasks, not options.no_control, not options.json))
    for name in by_seed[0]:
        values = [figures[name] for figures in by_seed]
        result[name], result[f"{name}_spread"] = round(statistics.mean(values), 3), round(statistics.pstdev(values), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
