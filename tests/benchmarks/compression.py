"""How well a checkpoint predicts held-out code and prose, and how well it copies held-out names.

    python tests/benchmarks/compression.py --checkpoint runs/base [--json]

The checkpoint is a folder, a run's folder or an address, as for ``moonflow evaluate``; without it nothing is measured.

Bits per byte of the held-out modules' code and docstrings are compared with gzip, xz, and a byte 8-gram of the training
text. Names are copied if the model finds each of their tokens most likely, given the true tokens before. ``moonflow
evaluate`` measures everything else. Expect two minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.load import load_model  # noqa: E402
from model.codec.image import ImageConfig  # noqa: E402
from model.codec.tokenizer import Tokenizer  # noqa: E402
from model.data.batches.packing import pack  # noqa: E402
from model.data.families.recall import names_only  # noqa: E402
from model.data.families.stdlib import code_sources, stdlib_sources, whole  # noqa: E402
from model.data.samples.sample import Split  # noqa: E402
from model.data.samples.tokenize import tokenize  # noqa: E402
from model.evals.byte_ngram import LONGEST, ByteNgram  # noqa: E402
from model.evals.compression import bits_per_byte, compressors  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from pipelines.checkpoint_source import located  # noqa: E402

Kind = Literal["code", "prose"]
WINDOW, STRIDE = 224, 96  # tokens of a window, and of the part of it that counts
DOCUMENTS, AT_ONCE = 600, 100  # documents of names, and those of one forward
COPYING = 0.95  # asked for
SEED = 0


@torch.no_grad()
def copying(model: KimiK25, tokenizer: Tokenizer) -> float:
    """Share of the tokens of repeated held-out names that the model finds most likely, given the tokens before."""
    rng = np.random.default_rng(SEED)
    samples = [tokenize(names_only(rng, "eval", index), tokenizer, ImageConfig()) for index in range(DOCUMENTS)]
    for sample in samples:  # [EOS] and what separates names do not count
        for position in sample.loss_mask.nonzero().flatten().tolist():
            token = tokenizer.decode([int(sample.input_ids[position])])
            sample.loss_mask[position] = token != "[EOS]" and bool(token.strip(" ,;\n"))
    right = total = 0
    for start in range(0, len(samples), AT_ONCE):
        batch = pack(samples[start : start + AT_ONCE], tokenizer.pad_id)
        right += int((model(batch).argmax(-1) == batch.targets_N).sum())
        total += len(batch.targets_N)
    return right / total


def text(kind: Kind, split: Split) -> list[str]:
    """All text of a kind in a split, one document per source."""
    sources = code_sources(split) if kind == "code" else stdlib_sources(split)
    return [document for source in sources if (document := whole(source, kind))]


def compression(model: KimiK25, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Kind -> bits per byte of the model and of what it is compared with, and the size of the text."""
    found: dict[str, dict[str, Any]] = {}
    kinds: tuple[tuple[Kind, Kind], ...] = (("code", "prose"), ("prose", "code"))
    training = {kind: [document.encode() for document in text(kind, "train")] for kind, _ in kinds}
    for kind, other in kinds:
        documents = text(kind, "eval")
        held_out = [document.encode() for document in documents]
        bits = {
            "model": bits_per_byte(model, tokenizer, documents, tokens=WINDOW, stride=STRIDE),
            "ngram": ByteNgram(training[kind] + training[other], LONGEST).bits_per_byte(held_out),
            **compressors(held_out, training[kind]),
        }
        found[kind] = {name: round(value, 4) for name, value in bits.items()}
        found[kind] |= {"documents": len(documents), "bytes": sum(map(len, held_out))}
        found[kind]["met"] = all(bits["model"] < bits[name] for name in ("gzip", "xz", "ngram"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a checkpoint's folder, a run's folder, or an address")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "compression"}
    if options.checkpoint is None:
        result["not_measured"] = "no checkpoint to measure: give --checkpoint"
    else:
        with located(options.checkpoint, swarm=False) as source:
            model, tokenizer = load_model(source.folder).eval(), Tokenizer.load(source.folder)
        copied = copying(model, tokenizer)
        result |= {
            "checkpoint": source.title,
            "copied_names": {"value": round(copied, 4), "asked": COPYING, "met": copied >= COPYING},
            "bits_per_byte": compression(model, tokenizer),
        }
    if not options.json:
        for name, figures in result.items():
            print(name, figures)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
