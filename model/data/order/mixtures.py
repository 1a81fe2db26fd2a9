"""What a recipe makes and reads, by the name that the steps' parameter ``mixture`` gives: ``mixtures(name)``.

Ours; the numbers are in ``family_shares``. Nothing heavy is imported here: checks of parameters read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.boundary.errors import MoonflowError, did_you_mean
from model.data.order.family_shares import (
    BROAD_IMAGE_SAMPLES,
    BROAD_LONG_SAMPLES,
    BROAD_LONG_TEXT,
    BROAD_LONG_VISION,
    BROAD_TEXT,
    BROAD_TEXT_SAMPLES,
    BROAD_TRAJECTORIES,
    BROAD_VISION,
    FREE_SAMPLES,
    IMAGE_SAMPLES,
    JUDGED_SAMPLES,
    JUDGED_TRAJECTORIES,
    LONG_SAMPLES,
    LONG_TEXT,
    LONG_VISION,
    PLACES_VISION,
    SWARM_TEXT_SAMPLES,
    SWARM_TRAJECTORIES,
    TEXT,
    TEXT_SAMPLES,
    THINKING_TRAJECTORIES,
    TRAJECTORIES,
    VISION,
)
from model.data.order.shares import Mixture


@dataclass(frozen=True)
class WorldTasks:
    """What the tasks of the offline world are like, where a mixture has a share of them.

    Attributes:
        sizes: by family, the numbers of parts N, of the trajectories and of PARL's prompts.
        delegated: share of the reference trajectories that delegate, in all ways.
        delegated_up_to: by family, the largest N of which any does. Where one agent's work is too long to be read, what
            is left would teach to delegate such tasks always.
        bare: share of the tasks whose orchestrator has the swarm's tools alone (``model.data.families.world``).
    """

    sizes: Mapping[str, tuple[int, ...]]
    delegated: float
    delegated_up_to: Mapping[str, int] = field(default_factory=dict)
    bare: float = 0.0


@dataclass(frozen=True)
class Mixtures:
    """What a recipe of a certain length makes and reads.

    Attributes:
        text_samples, image_samples, long_samples: what ``prepare_data`` makes, in shares of its parameters of the same
            names. Their families are all that is made; each gets held-out samples too.
        text: of the text tokens of vit_pretrain and joint_pretrain.
        vision: of their vision tokens, as (progress of joint_pretrain, mixture from then on), rising from 0.0;
            vit_pretrain reads the first.
        long_text, long_vision: of the tokens of mid_train.
        trajectories: of those tokens of zero_vision_sft that are not the user's.
        world: of the tasks of the offline world; None: as their generators have them.
    """

    text_samples: Mixture
    image_samples: Mixture
    long_samples: Mixture
    text: Mixture
    vision: tuple[tuple[float, Mixture], ...]
    long_text: Mixture
    long_vision: Mixture
    trajectories: Mixture
    world: WorldTasks | None = None

    @property
    def made(self) -> tuple[str, ...]:
        """Every family that prepare_data makes."""
        return (*self.text_samples, *self.image_samples, *self.long_samples)


# Rows of 2,048 tokens hold most of one agent's work up to these N, and next to none of the sizes above: those are for
# PARL's prompts, and for orchestrators without other tools. Sizes between, whose work fits now and then, are left out.
SWARM_TASKS = WorldTasks(
    sizes={
        "world_wide": (2, 3, 4, 8, 16),
        "world_deep": (2, 3, 4, 6, 8),
        "world_document": (2, 4, 8),
        "world_bulk": (2, 4, 8),
        "world_easy": (1,),
    },
    delegated=0.05,
    delegated_up_to={"world_wide": 4, "world_document": 2, "world_bulk": 2},
    bare=0.57,
)

MIXTURES = {
    "short": Mixtures(
        TEXT_SAMPLES,
        IMAGE_SAMPLES,
        LONG_SAMPLES,
        TEXT,
        ((0.0, VISION),),
        LONG_TEXT,
        LONG_VISION,
        TRAJECTORIES,
    ),
    "broad": Mixtures(
        BROAD_TEXT_SAMPLES,
        BROAD_IMAGE_SAMPLES,
        BROAD_LONG_SAMPLES,
        BROAD_TEXT,
        ((0.0, BROAD_VISION), (0.4, PLACES_VISION)),
        BROAD_LONG_TEXT,
        BROAD_LONG_VISION,
        BROAD_TRAJECTORIES,
    ),
    "thinking": Mixtures(
        FREE_SAMPLES | {name: share / 4 for name, share in BROAD_TEXT_SAMPLES.items()},
        BROAD_IMAGE_SAMPLES,
        BROAD_LONG_SAMPLES,
        BROAD_TEXT,
        ((0.0, BROAD_VISION), (0.4, PLACES_VISION)),
        BROAD_LONG_TEXT,
        BROAD_LONG_VISION,
        THINKING_TRAJECTORIES,
    ),
    "judged": Mixtures(
        JUDGED_SAMPLES | {name: share / 4 for name, share in BROAD_TEXT_SAMPLES.items()},
        BROAD_IMAGE_SAMPLES,
        BROAD_LONG_SAMPLES,
        BROAD_TEXT,
        ((0.0, BROAD_VISION), (0.4, PLACES_VISION)),
        BROAD_LONG_TEXT,
        BROAD_LONG_VISION,
        JUDGED_TRAJECTORIES,
    ),
    "swarm": Mixtures(
        SWARM_TEXT_SAMPLES,
        BROAD_IMAGE_SAMPLES,
        BROAD_LONG_SAMPLES,
        BROAD_TEXT,
        ((0.0, BROAD_VISION), (0.4, PLACES_VISION)),
        BROAD_LONG_TEXT,
        BROAD_LONG_VISION,
        SWARM_TRAJECTORIES,
        SWARM_TASKS,
    ),
}
"""By the value of the steps' parameter ``mixture``."""


def mixtures(name: str) -> Mixtures:
    """The mixtures of this name. MoonflowError if there are none."""
    if name not in MIXTURES:
        known = ", ".join(MIXTURES)
        hint = did_you_mean(name, MIXTURES)
        raise MoonflowError(f"there is no mixture {name[:100]!r}{hint or ':'} choose from {known}")
    return MIXTURES[name]
