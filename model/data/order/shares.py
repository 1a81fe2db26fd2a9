"""Shares of families and of the user's sources, and how they are blended (ours). Nothing heavy is imported here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from model.boundary.errors import MoonflowError

Mixture = dict[str, float]
"""Family or source -> its share; they need not be 1 in sum."""


def blend(*parts: tuple[Mixture, float]) -> Mixture:
    """One mixture of several, in which each has its given share."""
    blended: Mixture = {}
    for mixture, share in parts:
        total = sum(mixture.values())
        for name, weight in mixture.items():
            blended[name] = blended.get(name, 0.0) + share * weight / total
    return blended


def parse_shares(text: str) -> Mixture:
    """``"support=0.3, notes=0.2"`` as a dictionary: the user's sources and their shares of the tokens.

    Raises:
        MoonflowError: the text has another form, a name is given twice, or the shares are more than 1 in sum.
    """
    shares: Mixture = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z][a-z0-9_]*) *= *([0-9.]{1,9})", entry)
        try:
            share = float(match[2]) if match else 0.0
        except ValueError:
            share = 0.0
        if not match or not 0 < share <= 1:
            raise MoonflowError(f"{entry!r} is not a share: write name=share, a share of the tokens above 0, at most 1")
        if match[1] in shares:
            raise MoonflowError(f"{match[1]!r} has two shares: leave one of them out")
        shares[match[1]] = share
    if (whole := sum(shares.values())) > 1 + 1e-6:
        raise MoonflowError(f"the shares are {whole:g} in sum: give at most 1, which is your data alone")
    return shares


def with_shares(mixture: Mixture, shares: Mapping[str, float]) -> Mixture:
    """The mixture and the sources that have a share of it; the sources alone, if their shares are 1 in sum."""
    rest = 1 - sum(shares.values())
    parts = [(dict.fromkeys([name], 1.0), share) for name, share in shares.items()]
    return blend(*([(mixture, rest)] if rest > 1e-6 else []), *parts)
