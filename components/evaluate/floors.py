"""The gate's floors as text, with commas between: ``suite=value``, ``ability/modality=value``, or ``family=value`` for
the best of a family's suites. A user's task is a suite of its short name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from model.boundary.errors import MoonflowError, did_you_mean
from model.evals.suites import SUITES


def parse_floors(text: str, own: Sequence[str] = ()) -> dict[str, float]:
    """``"digit_string=0.9, reasoning/image=0.5"`` as a dictionary.

    Args:
        own: short names of the user's tasks.

    Raises:
        MoonflowError: the text has another form, a name is not evaluated or is given twice, or a value is outside of
            0 to 1.
    """
    floors: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            floor = float(value)
        except ValueError:
            raise MoonflowError(f"{part!r} is not a floor: write suite=value or ability/modality=value") from None
        if not 0 <= floor <= 1:
            raise MoonflowError(f"{part!r}: scores go from 0 to 1, and so does a floor")
        if name in floors:
            raise MoonflowError(f"{name!r} has two floors: leave one of them out")
        known = evaluated_abilities() if "/" in name else [*SUITES, *families_with_several_suites(), *own]
        if name not in known:
            hint = did_you_mean(name, known)
            raise MoonflowError(f"{name!r} is not evaluated{hint or ':'} choose from {', '.join(known)}")
        floors[name] = floor
    return floors


def families_with_several_suites() -> list[str]:
    """Families that are run in several ways, wide_search for example by one agent and by a swarm."""
    counts = Counter(suite.family for suite in SUITES.values())
    return [family for family, count in counts.items() if count > 1]


def evaluated_abilities() -> list[str]:
    """``ability/modality`` of all suites."""
    from model.data.families import FAMILIES  # imports the generators, which only a floor of an ability needs

    families = [FAMILIES[suite.family] for suite in SUITES.values()]
    return sorted({f"{family.ability}/{family.modality}" for family in families})
