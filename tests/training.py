"""Steps of training in one call, for those who want no judgement in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.folder import HasNamedState, load_training_state, state_text, write_checkpoint
from model.checkpoint.load import load_weights
from model.checkpoint.slices import as_slices
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.network.batch import Batch
from model.network.config import preset
from model.network.forward_context import PLAIN, ForwardContext
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.optimizer.optimization import Optimization
from model.parallel.loss import BatchSize, Figures, LossPart, figures_of, loss_of_rows
from model.parallel.ranks import Ranks
from model.parallel.thread_replicas import ThreadReplicas
from model.train.cross_entropy import CrossEntropy
from model.train.engine import TrainingEngine
from model.train.loop import train
from model.train.phase import Phase
from tests.step_services import FolderServices

LOSS = CrossEntropy()


def phase(
    data: DataFolder, weights: Mapping[str, float], steps: int, rate: float, *,
    tokens: int = 128, rows: int = 2, checkpoint_every: int = 0, window: int = 0, **settings: Any,
) -> Phase:  # fmt: skip
    """A phase on ``rows`` rows of ``tokens`` tokens; ``settings`` are further ones of its optimization."""
    stream = data.mixture(dict(weights), tokens_per_row=tokens, rows=rows, seed=0)
    return Phase(stream, Optimization(steps, rate, **settings), checkpoint_every, window)


def train_tiny(
    data: DataFolder, phases: Sequence[Phase], services: FolderServices, ranks: Ranks | None = None
) -> KimiK25:
    """Train the tiny preset from its first weights, or from where ``services`` has got to."""
    model = new_model(preset("tiny"), seed=1)
    train(model, phases, data.path, services, ranks)
    return model


def model_that_ends_its_turns(tokenizer: Tokenizer) -> KimiK25:
    """The tiny preset with weights that make its answers to short questions empty, so that they are judged."""
    model = new_model(preset("tiny"), seed=5)
    with torch.no_grad():
        model.language_model.lm_head.weight[tokenizer.im_end_id] *= -1000
    return model


def take_step(engine: TrainingEngine, batch: Batch, number: int = 0) -> Figures:
    """One whole optimizer step of supervised training."""
    return engine.backward(batch, LOSS) | engine.update(number)


def batch_loss(model: KimiK25, batch: Batch, context: ForwardContext = PLAIN) -> tuple[Tensor, Figures]:
    """The supervised loss of one forward, with gradient, and its figures."""
    part = loss_of_rows(model, batch, LOSS, BatchSize.of(batch, Ranks()), Ranks(), context)
    return part.loss, figures_of(LOSS, [part], Ranks())


def add_gradient(
    replicas: ThreadReplicas, batch: Batch, weight: float = 1.0, context: ForwardContext = PLAIN
) -> Figures:
    """Add ``weight`` times the supervised loss's gradient, by parts on threads, as an engine of one process."""
    loss, size = CrossEntropy(weight), BatchSize.of(batch, Ranks())

    def backward(model: KimiK25, part: Batch) -> LossPart:
        return loss_of_rows(model, part, loss, size, Ranks(), context).backward()

    return figures_of(loss, replicas.run(backward, replicas.split(batch)), Ranks())


def let_learn(model: KimiK25, *parts: str) -> KimiK25:
    """The model, of which only what has one of ``parts`` in its name learns; without parts, all of it."""
    for name, parameter in model.named_parameters():
        chosen = not parts or any(part in name for part in parts)
        parameter.requires_grad_(chosen and "e_score_correction_bias" not in name)
    return model


def gradients(model: KimiK25) -> dict[str, Tensor]:
    """A copy, of the parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def save_checkpoint(
    folder: Path, model: KimiK25, tokenizer_folder: Path, optimizer: HasNamedState | None, state: Mapping[str, Any]
) -> None:
    """A checkpoint written at once; without an optimizer it is for inference only."""
    slices = None if optimizer is None else as_slices(optimizer.named_state())
    write_checkpoint(folder, model.config, model.state_dict(), tokenizer_folder, slices, state_text(state))


def load_checkpoint(folder: Path, model: KimiK25, optimizer: HasNamedState) -> dict[str, Any]:
    """Restore weights, optimizer and torch's RNG; returns the saved ``state``."""
    load_weights(model, folder)
    return load_training_state(folder, optimizer)
