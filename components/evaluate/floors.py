"""The gate's floors as text: ``suite=value`` or ``ability/modality=value``, with commas between."""

from __future__ import annotations

from components.prepare_data.families import PREPARED
from model.errors import MoonflowError, did_you_mean
from model.evals.tasks import SUITES, Suite


def parse_floors(text: str) -> dict[str, float]:
    """``"digit_string=0.9, reasoning/image=0.5"`` as a dictionary.

    Raises:
        MoonflowError: another form, a name that no evaluation has or that stands there twice, or a value outside of 0
            to 1.
    """
    floors: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            floor = float(value)
        except ValueError:
            raise MoonflowError(f"{part!r} is no floor: write suite=value or ability/modality=value") from None
        if not 0 <= floor <= 1:
            raise MoonflowError(f"{part!r}: scores go from 0 to 1, and so does a floor")
        if name in floors:
            raise MoonflowError(f"{name!r} has two floors: leave one of them out")
        known = evaluated_abilities() if "/" in name else [suite.name for suite in evaluated_suites()]
        if name not in known:
            hint = did_you_mean(name, known)
            raise MoonflowError(f"{name!r} is not evaluated{hint or ':'} choose from {', '.join(known)}")
        floors[name] = floor
    return floors


def evaluated_suites() -> list[Suite]:
    """The suites of which prepare_data makes held-out tasks."""
    return [suite for suite in SUITES.values() if suite.family in PREPARED]


def evaluated_abilities() -> list[str]:
    """``ability/modality`` of these suites."""
    from model.data.families import FAMILIES  # the generators: only who names an ability waits for them

    families = [FAMILIES[suite.family] for suite in evaluated_suites()]
    return sorted({f"{family.ability}/{family.modality}" for family in families})
