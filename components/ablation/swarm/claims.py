"""What a swarm ablation says about the claims: the rule of each, whether it held, and the figures in words (ours).

Where ``trained`` is the only arm, the claims say what its swarm gains. Otherwise there is one claim for each other arm:
what it lacks, compared with ``trained``. A claim is judged by means over the seeds that have all of its figures; each
of these seeds is shown, and the others are named. A swarm that finds nothing, or less than one agent, meets no claim
about speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from components.ablation.claim import Claim, by_seed, with_no_result
from components.ablation.spread import half_width
from components.ablation.swarm.arms import TRAINED
from components.ablation.swarm.comparison import FLAT_FROM, values

GAIN = 6.0  # points of F1 over the best single agent
FASTER = 3.0  # times fewer critical steps and seconds
GROWTH = 1.5  # of the time from FLAT_FROM parts to the most
OVERHEAD = 1.1  # critical steps on easy tasks, by those of one agent
SAME_F1 = 1.0  # points of F1 that count as no lower, where the claim is about time
SERIAL = 0.5  # of the trained arm's assignments at once: from there down, work has become serial

Found = Mapping[str, Any]
NONE: Found = {"figures": {}}


def claims(found: Found) -> list[Claim]:
    """The verdicts on what ``comparison.compare`` found."""
    arms = found["arms"]
    trained, others = arms.get(TRAINED, NONE), [name for name in arms if name != TRAINED]
    verdicts = [_ABLATED[name](trained, arms[name]) for name in others] if others else _trained(trained)
    return with_no_result(verdicts, found["no_result"])


def _trained(arm: Found) -> list[Claim]:
    wide, no_lower = "at the largest N, ", f"at an item-F1 that is at most {SAME_F1:g} point below one agent's"
    return [
        _claim(
            [arm], f"item-F1 is at least {GAIN:g} points above the best single agent's, of before or after PARL",
            [("f1_gain_points", "points")], lambda gain: gain >= GAIN,
        ),
        _claim(
            [arm], f"{wide}the swarm has no lower item-F1 and takes {FASTER:g} times fewer critical steps and seconds",
            [("wide_f1", "F1"), ("wide_f1_points", "points of F1"), ("wide_steps_ratio", "times the steps"),
             ("wide_seconds_ratio", "times the seconds")],
            lambda f1, more, steps, seconds: f1 > 0 and more >= 0 and min(steps, seconds) >= FASTER,
        ),
        _claim(
            [arm], f"from N = {FLAT_FROM} to the largest N, the swarm's time grows at most {GROWTH:g} times, "
            f"{no_lower}",
            [("wide_f1", "F1"), ("wide_f1_points", "points of F1"), ("growth", "times")],
            lambda f1, more, growth: f1 > 0 and more >= -SAME_F1 and growth <= GROWTH,
        ),
        _claim(
            [arm], f"easy tasks take at most {OVERHEAD:g} times the critical steps of one agent, {no_lower}",
            [("easy_f1", "F1"), ("easy_f1_points", "points of F1"), ("easy_overhead", "times")],
            lambda f1, more, overhead: f1 > 0 and more >= -SAME_F1 and overhead <= OVERHEAD,
        ),
        _claim(
            [arm], f"contexts are divided: {wide}the largest one is smaller than the best single agent's, and in "
            "windows of half the size the swarm loses less F1, and has no lower F1 than one agent",
            [("wide_f1", "F1"), ("context_ratio", "times the context"),
             ("halved_swarm_points", "points lost by the swarm"),
             ("halved_single_points", "points lost by the agent"), ("halved_swarm_f1", "F1 of the swarm then"),
             ("halved_single_f1", "F1 of the agent then")],
            lambda f1, context, swarm, single, left, lefts: f1 > 0 and context > 1 and swarm < single
            and left > 0 and left >= lefts,
        ),
        _claim(
            [arm], "the reward without bonuses rises once the bonuses are gone: in the second half of these rounds it "
            "is higher than in the first, and than in as many rounds before them",
            [("reward_before", "before"), ("reward_first", "first half"), ("reward_last", "second half")],
            lambda before, first, last: last > first and last > before,
        ),
    ]  # fmt: skip


def _no_parallel(trained: Found, arm: Found) -> Claim:
    return _claim(
        [trained, arm], "no_parallel: serial collapse; without the reward for parallel work, an episode of the last "
        f"quarter of rounds has at most {SERIAL:g} times as many assignments at once as one of trained",
        [("parallelism_last", "assignments at once")], lambda kept, lost: lost <= SERIAL * kept,
    )  # fmt: skip


def _no_finish(trained: Found, arm: Found) -> Claim:
    return _claim(
        [trained, arm], "no_finish: spawning without F1; without the reward for finished subtasks, the last quarter of "
        "rounds has more subtasks an episode than trained, and the swarm has no higher item-F1",
        [("subtasks_last", "subtasks"), ("swarm_f1", "F1")],
        lambda few, many, kept, f1: many > few and f1 <= kept,
    )  # fmt: skip


def _constant(trained: Found, arm: Found) -> Claim:
    return _claim(
        [trained, arm], "constant: bonus hacking; where the bonuses never fall, the last quarter of rounds earns more "
        "of them than trained, and the swarm has a lower item-F1",
        [("bonuses_earned", "of both bonuses, without weights"), ("swarm_f1", "F1")],
        lambda few, many, kept, f1: many > few and f1 < kept,
    )  # fmt: skip


def _forced(trained: Found, arm: Found) -> Claim:
    return _claim(
        [trained, arm], "forced: forced delegation; trained without tools of its own, the orchestrator has a lower "
        "item-F1 than trained, both where it has its tools and where it must delegate, as trained must then too",
        [("swarm_f1", "F1"), ("must_delegate_f1", "F1 where it must delegate")],
        lambda free, own, held, forced: own < free and forced < held,
    )  # fmt: skip


_ABLATED = {"no_parallel": _no_parallel, "no_finish": _no_finish, "constant": _constant, "forced": _forced}


def _claim(
    arms: Sequence[Found], text: str, names: Sequence[tuple[str, str]], rule: Callable[..., bool]
) -> Claim:  # fmt: skip
    """Judged over the seeds that have every figure in every arm; ``rule`` gets the arms' means, figure by figure."""
    each = [(values(arm, name), unit) for name, unit in names for arm in arms]
    ended = sorted(set.intersection(*(set(arm["figures"]) for arm in arms)), key=int)
    whole = [seed for seed in ended if all(seed in seeds for seeds, _ in each)]
    kept = [({seed: seeds[seed] for seed in whole}, unit) for seeds, unit in each]
    told = [f"{_told(seeds)} {unit}" for seeds, unit in kept if whole]
    if len(arms) > 1:
        told = [f"{first}, in trained {second}" for second, first in zip(told[::2], told[1::2], strict=True)]
    told += [_lacking(seed, each) for seed in ended if seed not in whole]
    met = rule(*(fmean(seeds.values()) for seeds, _ in kept)) if whole else None
    return Claim(text, len(whole), met, "; ".join(told))


def _lacking(seed: str, each: Sequence[tuple[Mapping[str, float], str]]) -> str:
    units = dict.fromkeys(unit for seeds, unit in each if seed not in seeds)
    return f"seed {seed} is left out: it has no figure for {', '.join(units)}"


def _told(seeds: Mapping[str, float]) -> str:
    shown = list(seeds.values())
    return by_seed({"mean": fmean(shown), "half": half_width(shown), "seeds": seeds}, ".2f")
