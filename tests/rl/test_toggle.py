from __future__ import annotations

import json

from model.rl.toggle import Toggle, ToggleConfig

CONFIG = ToggleConfig(accuracy=0.5, every=2, percentile=50)


def test_phases_alternate_every_m_iterations() -> None:
    assert [Toggle(CONFIG).budget_phase(t) for t in range(6)] == [True, True, False, False, True, True]


def test_budget_is_the_percentile_of_correct_lengths_measured_once() -> None:
    toggle = Toggle(CONFIG)
    toggle.measure("x", [9, 9], [False, False])
    assert toggle.budgets == {}
    toggle.measure("x", [10, 20, 30, 99], [True, True, True, False])
    assert toggle.budgets == {"x": 20.0}
    toggle.measure("x", [1], [True])
    assert toggle.budgets == {"x": 20.0}


def test_the_budget_bites_only_where_accuracy_reaches_lambda_and_only_in_its_phase() -> None:
    toggle = Toggle(CONFIG, {"x": 20.0})
    lengths = [10, 20, 21, 30]
    assert toggle.shape(0, "x", [1, 1, 1, 0], lengths) == [1, 1, 0, 0]
    assert toggle.shape(2, "x", [1, 1, 1, 0], lengths) == [1, 1, 1, 0]
    assert toggle.shape(0, "x", [0, 0, 1, 0], lengths) == [0, 0, 1, 0]  # mean 0.25 < lambda
    assert toggle.shape(0, "x", [0, 0, 1, 1], lengths) == [0, 0, 0, 0]  # mean = lambda: bites
    assert toggle.shape(0, "unseen", [1, 1, 1, 0], lengths) == [1, 1, 1, 0]


def test_state_survives_json() -> None:
    toggle, other = Toggle(CONFIG, {"x": 20.5}), Toggle(CONFIG)
    other.load(json.loads(json.dumps(toggle.state())))
    assert other.budgets == toggle.budgets
