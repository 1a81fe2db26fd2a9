"""What the tiny preset has learned after a long pre-training, beside what was asked of it.

    python tests/benchmarks/pretraining.py --train [--folder runs/pretraining] [--tasks 400] [--json]
    python tests/benchmarks/pretraining.py [--checkpoint FOLDER]    # measures what is there; trains nothing

Data, ViT pre-training and joint pre-training by the stages' own machinery (generators, shards, stream, phases,
checkpoints) in a local folder, without store or tracker, with the broad mixtures of `model.data.mixtures`; then greedy
answers to held-out tasks drawn from the generators, per-token copying of held-out names, and bits per byte of the
held-out modules' code and prose beside gzip, xz and an n-gram model of the same training text. A killed run goes on
from its last checkpoint. About 45 minutes on one CPU core, of which measuring is one; the figures of one such run are
in results/ beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.prepare_data.config import Config as DataConfig  # noqa: E402
from components.prepare_data.lengths import measured  # noqa: E402
from components.prepare_data.stage import index_of, plan, texts_of, write  # noqa: E402
from model.config import preset  # noqa: E402
from model.data.families import FAMILIES  # noqa: E402
from model.data.families.recall import names_only  # noqa: E402
from model.data.families.stdlib import code_sources, stdlib_sources, whole  # noqa: E402
from model.data.folder import DataFolder  # noqa: E402
from model.data.lengths import write_lengths  # noqa: E402
from model.data.mixtures import BROAD_TEXT, BROAD_VISION, PLACES_VISION, Mixture, blend  # noqa: E402
from model.data.packing import pack  # noqa: E402
from model.data.sample import Split  # noqa: E402
from model.data.tokenize import tokenize  # noqa: E402
from model.evals.byte_ngram import LONGEST, ByteNgram  # noqa: E402
from model.evals.compression import bits_per_byte, compressors  # noqa: E402
from model.evals.scorer import Evaluation  # noqa: E402
from model.evals.tasks import SUITES  # noqa: E402
from model.hf import load_image_config, load_model  # noqa: E402
from model.image import ImageConfig  # noqa: E402
from model.multimodal import KimiK25  # noqa: E402
from model.rl.tools.toolset import Toolset  # noqa: E402
from model.rollout.embedded import EmbeddedEngine  # noqa: E402
from model.tokenizer import Tokenizer  # noqa: E402
from model.train.checkpoint import STATE, load_parent, read_state  # noqa: E402
from model.train.loop import train  # noqa: E402
from model.train.phase import Phase  # noqa: E402

# Figures that are asked for, and at least how much.
ASKED = {
    "digit_string": 0.95, "digit_tally": 0.85, "ocr_text": 0.80, "scene_caption": 0.90, "scene_box": 0.60,
}  # fmt: skip
ALSO = ("digit_count", "grounding", "ocr_line", "photo", "chart", "fact_qa", "array_tool")
COPYING = 0.95
# Training samples of each family. Reading needs the most different ones; a text window is eight images long.
SAMPLES = {
    "ocr_text": 50_000, "scene_box": 40_000, "scene_caption": 24_000, "digit_string": 30_000, "digit_tally": 24_000,
    "digit_count": 5_000, "grounding": 8_000, "ocr_line": 6_000, "chart": 3_000, "photo": 1_500,
    "code_window": 20_000, "prose_window": 12_000, "recall": 25_000, "fact_qa": 15_000, "array_tool": 5_000,
    "sub_search": 4_000, "reasoning_gym": 4_000, "fact_prose": 2_000,
}  # fmt: skip
TOKENIZER_SAMPLES = {"code_window": 2_000, "prose_window": 2_000, "recall": 500, "fact_qa": 500, "array_tool": 500,
                     "sub_search": 300, "reasoning_gym": 300, "fact_prose": 200}  # fmt: skip
RATE, TOKENS, ROWS = 6e-3, 256, 8
VIT_STEPS, PROJECTOR_STEPS, READING_STEPS, PLACES_STEPS = 800, 15, 3_250, 5_200
WINDOW, STRIDE = 224, 96  # tokens: of a window that bits per byte are measured in, and of its counted end
SEED = 0


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was saved there."""
    return max(folder.glob("saved-*"), default=None)


@dataclass(frozen=True)
class Saving:
    """A checkpoint that appears whole or not at all; the one before it is kept, earlier ones are not."""

    into: Path
    index: int
    complete: bool

    def clear(self) -> None:
        """One process has nothing to clear for others."""

    def add(self, folder: Path) -> None:
        """One process has no others' files to bring."""

    def publish(self, folder: Path, added: Sequence[Any] = ()) -> None:
        copied = self.into / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(folder, copied)
        for earlier in sorted(self.into.glob("saved-*"))[:-1]:
            shutil.rmtree(earlier)
        copied.rename(self.into / f"saved-{self.index:04d}")
        if self.complete:
            (self.into / "complete").touch()


@dataclass
class Here:
    """A step's surroundings in a local folder: checkpoints by number, metrics as JSON lines, progress printed."""

    folder: Path
    quiet: bool

    def __post_init__(self) -> None:
        self.work = self.folder / "work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.started = self.shown = time.monotonic()
        self.checkpoints = self.metrics = self.progress = self

    def latest(self) -> Path | None:
        return newest(self.folder)

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Saving:
        return Saving(self.folder, index, complete)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def update(self, done: int, total: int, **figures: float) -> None:
        if not self.quiet and (done == total or time.monotonic() > self.shown + 30):
            self.shown = time.monotonic()
            shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"{self.folder.name} {done}/{total}  {shown}  {self.shown - self.started:.0f} s", flush=True)


def prepare(folder: Path) -> None:
    """The data folder: train shards of `SAMPLES`, tokenizer, index."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    shards = [shard for shard in plan(SAMPLES, 0, 1000) if shard.split == "train"]
    for shard in shards:
        if not (folder / shard.name).exists():
            write(shard, folder, DataConfig(seed=SEED))
    texts = (
        text
        for name, count in TOKENIZER_SAMPLES.items()
        for index in range(count)
        for text in texts_of(FAMILIES[name].sample(SEED, "train", index))
    )
    vocabulary = preset("tiny").text_config.vocab_size
    Tokenizer.train(texts, vocabulary - 256).save(folder)
    write_lengths(folder, dict(measured(folder, shard.name, shard.count) for shard in shards))
    index = {"families": index_of(shards), "image": ImageConfig().model_dump(mode="json")}
    (folder / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def learn(folder: Path, quiet: bool) -> Path:
    """ViT and joint pre-training; the folder of the last checkpoint."""
    if not (folder / "data/index.json").exists():
        prepare(folder / "data")
    data = DataFolder(folder / "data")

    def phase(vision: Mixture, share: float, steps: int, rate: float, seed: int, **others: Any) -> Phase:
        weights = blend((BROAD_TEXT, 1 - share), (vision, share))
        stream = data.mixture(weights, tokens_per_row=TOKENS, rows=ROWS, seed=seed)
        return Phase(stream, steps, rate, checkpoint_every=250, products="bfloat16", **others)

    vit, joint = folder / "vit", folder / "joint"
    if not (vit / "complete").exists():
        caption = phase(BROAD_VISION, 0.5, VIT_STEPS, RATE, SEED)
        align = phase(BROAD_VISION, 0.5, PROJECTOR_STEPS, RATE * caption.final_ratio, SEED, trainable=("mm_projector",))
        train(KimiK25(preset("tiny"), seed=SEED), [caption, align], data.path, Here(vit, quiet))
    captioner = newest(vit)
    assert captioner is not None
    if not (joint / "complete").exists():
        model = load_parent(captioner, data.tokenizer)
        reading = phase(BROAD_VISION, 0.5, READING_STEPS, RATE, SEED + 1, final_ratio=0.6)
        places = phase(PLACES_VISION, 0.6, PLACES_STEPS, RATE * 2 / 3, SEED + 2, final_ratio=0.03)
        train(model, [reading, places], data.path, Here(joint, quiet))
    learned = newest(joint)
    assert learned is not None
    return learned


def suites(checkpoint: Path, model: KimiK25, tasks: int) -> dict[str, dict[str, float]]:
    """Greedy scores on held-out tasks."""
    engine, found = EmbeddedEngine(model, 128), {}
    with Toolset() as toolset:
        evaluation = Evaluation(Tokenizer.load(checkpoint), load_image_config(checkpoint), toolset, 0.0, seed=0)
        for name in (*ASKED, *ALSO):
            samples = [FAMILIES[SUITES[name].family].sample(SEED, "eval", index) for index in range(tasks)]
            context = model.config.text_config.max_position_embeddings
            score = asyncio.run(evaluation.score(engine, engine, {name: samples}, [SUITES[name]], context))[name]
            found[name] = {"value": round(score.value, 4), "stderr": round(score.stderr, 4)}
    return found


@torch.no_grad()
def copying(model: KimiK25, tokenizer: Tokenizer, documents: int) -> float:
    """Share of the tokens of held-out names that come back which the model finds likeliest, given those before."""
    rng = np.random.default_rng(SEED)
    samples = [tokenize(names_only(rng, "eval", index), tokenizer, ImageConfig()) for index in range(documents)]
    for sample in samples:  # neither [EOS] nor what stands between names is part of one
        for place in sample.loss_mask.nonzero().flatten().tolist():
            piece = tokenizer.decode([int(sample.input_ids[place])])
            sample.loss_mask[place] = piece != "[EOS]" and bool(piece.strip(" ,;\n"))
    right = total = 0
    for start in range(0, documents, 100):
        batch = pack(samples[start : start + 100], tokenizer.pad_id)
        right += int((model(batch).argmax(-1) == batch.targets_N).sum())
        total += len(batch.targets_N)
    return right / total


def text(kind: Literal["code", "prose"], split: Split) -> list[str]:
    """All of the split's text of a kind, by source."""
    sources = code_sources(split) if kind == "code" else stdlib_sources(split)
    return [document for source in sources if (document := whole(source, kind))]


def compression(model: KimiK25, tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    training: dict[str, list[bytes]] = {
        kind: [document.encode() for document in text(kind, "train")] for kind in ("code", "prose")
    }
    for kind, other in (("code", "prose"), ("prose", "code")):
        documents = text(kind, "eval")  # type: ignore[arg-type]
        held_out = [document.encode() for document in documents]
        ngram = ByteNgram(training[kind] + training[other], LONGEST).bits_per_byte(held_out)
        bits = {
            "model": bits_per_byte(model, tokenizer, documents, tokens=WINDOW, stride=STRIDE),
            "ngram": ngram,
            **compressors(held_out, training[kind]),
        }
        found[kind] = {name: round(value, 4) for name, value in bits.items()}
        found[kind] |= {"documents": len(documents), "bytes": sum(map(len, held_out))}
        found[kind]["met"] = all(bits["model"] < bits[name] for name in ("gzip", "xz", "ngram"))
    return found


def measure(checkpoint: Path, tasks: int) -> dict[str, Any]:
    model = load_model(checkpoint).eval()
    tokenizer = Tokenizer.load(checkpoint)
    found: dict[str, Any] = suites(checkpoint, model, tasks)
    for name, least in ASKED.items():
        found[name] |= {"asked": least, "met": found[name]["value"] >= least}
    copied = copying(model, tokenizer, tasks)
    found["copied_names"] = {"value": round(copied, 4), "asked": COPYING, "met": copied >= COPYING}
    return found | {"bits_per_byte": compression(model, tokenizer)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pretraining"), help="data and checkpoints")
    parser.add_argument("--train", action="store_true", help="train first, or go on with it")
    parser.add_argument("--checkpoint", type=Path, help="measure this one")
    parser.add_argument("--tasks", type=int, default=400, help="of each suite")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        checkpoint: Path | None = learn(options.folder, options.json)
    else:
        checkpoint = options.checkpoint or newest(options.folder / "joint")
    result: dict[str, Any] = {"benchmark": "pretraining", "tasks": options.tasks}
    if checkpoint is None:
        result["not_measured"] = f"no checkpoint in {options.folder}: train with --train, or give --checkpoint"
    else:
        if (checkpoint / STATE).exists():
            loop = read_state(checkpoint)["loop"]
            result["joint_training"] = {name: round(loop[name]) for name in ("tokens_seen", "seconds")}
        result |= measure(checkpoint, options.tasks)
    if not options.json:
        for name, figures in result.items():
            print(name, figures)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
