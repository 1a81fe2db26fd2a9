"""Parameters of one arm of the RL ablation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from components.ablation.rl.arms import ARMS, IMAGES, cells
from components.runtime.config import HIGHEST_RATE, EpisodesConfig, MixtureName, PTXConfig
from model.boundary.errors import did_you_mean


def _families(text: str) -> str:
    names = text.split(",")
    for name in names:
        if name not in IMAGES:
            hint = did_you_mean(name, IMAGES)
            known = ",".join(IMAGES)
            raise ValueError(f"{name!r} is no family that is measured{hint}; write some of {known}, no blanks")
    if len(set(names)) < len(names):
        raise ValueError("write each family once")
    return text


class Config(PTXConfig, EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {name: arm.needs for name, arm in ARMS.items()}

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return cells(seeds)

    arm: str = Field(
        "visual",
        pattern="^(before|visual|rft|more_sft|joint)$",
        description="before, zero-vision SFT; visual, RL on images after it; rft, fine-tuning of before on the "
        "successes of visual; more_sft, of before on its own data; or joint, joint RL after rft (source: K2.5 paper, "
        "visual and joint RL)",
    )
    seed: int = Field(0, ge=0, description="seed of data order, prompts and sampling (source: ours)")
    mixture: MixtureName = Field(
        "broad",
        description="trajectories to fine-tune on, by name, and their shares of the tokens; the same as "
        "prepare_data.mixture (source: ours)",
    )
    tokens_per_row: int = Field(512, ge=64, description="sequence length of fine-tuning in tokens (source: ours)")
    rows: int = Field(8, ge=1, description="sequences per step of fine-tuning (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products in fine-tuning: float32, or bfloat16 unless the CPU has no "
        "instructions for it; weights are float32 (source: ours)",
    )
    start_steps: int = Field(240, ge=1, description="optimizer steps of the arm before (source: ours)")
    start_learning_rate: float = Field(
        1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate of the arm before (source: ours)"
    )
    tuning_steps: int = Field(60, ge=1, description="optimizer steps of the arms rft and more_sft (source: ours)")
    tuning_learning_rate: float = Field(
        3e-4, gt=0, le=HIGHEST_RATE, description="peak learning rate of the arms rft and more_sft (source: ours)"
    )
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the tokens of the arm rft that the successes have; the rest are trajectories (source: "
        "ours)",
    )
    visual_families: Annotated[str, AfterValidator(_families)] = Field(
        "array_tool_image,scene_box,digit_count,ocr_text,photo",
        description="families of images that the arm visual is trained on, with commas and no blanks between (source: "
        "ours)",
    )
    visual_iterations: int = Field(
        60, ge=1, description="rounds of rollout and training of the arm visual (source: ours)"
    )
    joint_iterations: int = Field(
        40, ge=1, description="rounds of rollout and training of the arm joint (source: ours)"
    )
    prompts_per_iteration: int = Field(16, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(8, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(
        2e-4, gt=0, le=HIGHEST_RATE, description="learning rate of RL, constant (source: ours)"
    )
    max_new_tokens: int = Field(
        48,
        ge=48,
        description="longest completion of RL in tokens; joint RL leaves out families whose held-out suite allows "
        "longer ones (source: ours)",
    )
    ptx_weight: float = Field(
        0.5,
        ge=0,
        description="weight of the pre-training loss in the arm joint; the arm visual has none, so that what it does "
        "to text comes from images alone; 0 = none (source: K2; value ours)",
    )
    kept_successes: int = Field(
        4_000,
        ge=1,
        le=100_000,
        description="successful episodes of the arm visual that are kept for the arm rft, at most; a newer one takes "
        "the place of the oldest (source: ours)",
    )
    kept_per_prompt: int = Field(
        2, ge=1, description="kept episodes of the same prompt, at most, the newest ones (source: ours)"
    )
    kept_reward: float = Field(
        1.0, gt=0, le=1, description="reward that an episode must earn to be kept (source: ours)"
    )
    checkpoint_every: int = Field(
        20,
        ge=0,
        description="optimizer steps, or rounds of RL, between saved states; 0 = only at the end (source: ours)",
    )
    samples: int = Field(640, ge=2, description="held-out tasks of each suite after training (source: ours)")
    max_batch: int = Field(128, ge=1, description="completions generated at the same time (source: ours)")
