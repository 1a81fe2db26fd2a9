"""The policy as a rank samples from it: whole, however the ranks divide what they train (source: ours)."""

from __future__ import annotations

from model.network.construction import build_on_meta
from model.network.multimodal import KimiK25
from model.parallel.ranks import Ranks
from model.train.engine import TrainingEngine


def sampled_policy(model: KimiK25, engine: TrainingEngine, ranks: Ranks) -> KimiK25:
    """The model with its weights of now. Make it anew after each step of training; every rank calls it.

    One process samples from ``model`` itself. Several build a second model, which has memory of its own only for
    weights that no rank holds whole (ZeRO stage 3, divided experts).
    """
    if ranks.world == 1:
        return model
    policy = build_on_meta(model.config)
    policy.load_state_dict(dict(engine.weights()), assign=True)
    return policy.requires_grad_(False).to(ranks.device).eval()
