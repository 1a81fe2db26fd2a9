"""What all ablations have in common."""

from __future__ import annotations

import pytest

from components.ablation import ablations
from model.boundary.errors import MoonflowError


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_a_comparison_of_an_earlier_version_is_refused_with_what_to_do(name: str) -> None:
    assert ablations.of({"name": name, "no_result": []}) is ablations.ABLATIONS[name]
    with pytest.raises(MoonflowError, match="earlier version of moonflow.*start the run again"):
        ablations.of({"name": name, "arms": {}})
