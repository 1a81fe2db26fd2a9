"""The loss on what was held out of the user's own data, for every checkpoint (source: ours)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from model.data.batches.folder import DataFolder
from model.data.samples.tokenize import tokenize
from model.evals.likelihood import HeldOut, trained_bytes
from model.evals.suites import readable

LOSSES = "own_losses.json"
Losses = dict[str, dict[str, float]]
"""Step -> source of the user -> mean loss of a target, in nats; lower is better."""


def own_held_out(data: DataFolder, count: int, context: int) -> HeldOut | None:
    """The held-out samples of the user's sources; None without such samples.

    Args:
        count: samples of each source at most.
        context: tokens that the model can see; a longer sample is left out.

    Raises:
        MoonflowError: too many held-out samples of a source cannot be read.
    """
    samples, text_bytes = {}, {}
    for name in data.index.get("own", {}):
        if not data.index["families"][name].get("eval"):
            continue
        chosen = list(islice(readable(data, name), count))
        made = [(sample, tokenize(sample, data.tokenizer, data.image_config)) for sample in chosen]
        fitting = [(sample, one) for sample, one in made if len(one.input_ids) <= context]
        if fitting:
            samples[name] = [one for _, one in fitting]
            text_bytes[name] = sum(trained_bytes(sample) for sample, _ in fitting)
    return HeldOut(samples, text_bytes, data.tokenizer.pad_id) if samples else None


def losses_before(partial: Path | None) -> Losses:
    """What an earlier attempt has measured."""
    path = None if partial is None else partial / LOSSES
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}


def write_losses(folder: Path, losses: Losses) -> None:
    """Nothing is written without losses."""
    if losses:
        (folder / LOSSES).write_text(json.dumps(losses, indent=1) + "\n")


def loss_metrics(losses: Mapping[str, float]) -> dict[str, float]:
    """``held_out/<source>`` in nats a target, named as those of the fusion ablation's families."""
    return {f"held_out/{name}": loss for name, loss in losses.items()}
