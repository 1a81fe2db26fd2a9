"""A short run of the RL loop: questions in text and about pictures, six tokens an answer, rewards from the tokens."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.served import PublishedCopy, as_served
from model.parallel.ranks import Ranks
from model.rl.environment import Episode, run_episode
from model.rl.ptx import PTX
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings, RLTrainer
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import RolloutEngine
from tests.step_services import FolderServices

SETTINGS = RLSettings(4, prompts_per_iteration=2, samples_per_prompt=4, learning_rate=1e-3, checkpoint_every=2)


class Tasks:
    """Alternately a text question and one about a picture."""

    def __getitem__(self, n: int) -> Sample:
        text, media, content = f"Say {n}.", {}, []
        if n % 2:
            buffer = io.BytesIO()
            Image.fromarray(np.full((28, 28 * (1 + n % 3), 3), 40 * (n % 6), np.uint8)).save(buffer, "png")
            media, content = {"png": buffer.getvalue()}, [{"type": "image", "media": "png"}]
        return Sample(
            key=f"t-{n}", family="t", ability="knowledge", modality="image" if n % 2 else "text", source="s",
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            answer="7", reward="exact", media=media,
        )  # fmt: skip


def trainer(tokenizer: Tokenizer, tokenizer_folder: Path, services: FolderServices, settings: RLSettings,
            wanted: int = 0, toggle: Toggle | None = None, ptx: PTX | None = None,
            acts: str = "full", ranks: Ranks | None = None, tokens: int = 6,
            engine: RolloutEngine | None = None) -> RLTrainer:  # fmt: skip
    """Rewards the share of sampled tokens below ``wanted``; 0 rewards every other length instead.

    Args:
        acts: the precision of the engine's experts.
        tokens: of an answer.
        engine: what samples; None: an engine of its own. Who gives another one than an EmbeddedEngine also replaces
            ``publish``.
    """
    torch.manual_seed(0)
    model = new_model(preset("tiny"), 3, (ranks or Ranks()).expert_share)
    engine, copies = engine or EmbeddedEngine(model), PublishedCopy()
    toolset = Toolset()

    async def rollout(sample: Sample, seed: int, _: int) -> Episode:
        episode = await run_episode(
            engine, tokenizer, sample, ImageConfig(), toolset, max_turns=1, max_new_tokens=tokens, temperature=1.0,
            seed=seed,
        )  # fmt: skip
        mine = [t for t, policy in zip(episode.input_ids, episode.policy_mask, strict=True) if policy]
        share = sum(token < wanted for token in mine) / max(1, len(mine)) if wanted else float(sum(mine) % 2)
        return replace(episode, reward=share, correct=share > 0.5)

    async def publish(policy: KimiK25) -> None:
        assert isinstance(engine, EmbeddedEngine)
        acting = as_served(policy, acts)
        if settings.max_staleness:
            engine.switch_model(copies.of(acting))
        else:
            engine.set_model(acting)

    return RLTrainer(
        model, Tasks(), rollout, publish, settings,
        pad_id=tokenizer.pad_id, tokenizer_folder=tokenizer_folder, services=services, toggle=toggle, ptx=ptx,
        ranks=ranks,
    )  # fmt: skip
