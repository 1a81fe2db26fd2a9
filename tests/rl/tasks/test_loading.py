from __future__ import annotations

from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.rl.tasks.loading import about, load
from model.rl.tasks.task import About
from tests.rl.tasks.user_tasks import HERE


@pytest.mark.parametrize("name", ["Say", "made_by_a_function", "an_object"])
def test_a_class_a_function_and_an_object_are_tasks(name: str) -> None:
    found = about(name, load(f"{HERE}:{name}"))
    assert found == About("reasoning", {"train": None, "eval": None}, 6, None, 5.0, None)
    assert about("Few", load(f"{HERE}:Few")).counts == {"train": 3, "eval": 0}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("not_there:Say", "there is no module not_there: install its package, or name its folder in PYTHONPATH"),
        ("tests.rl.not_there:Say", "there is no module tests.rl.not_there"),
        (f"{HERE}:Sey", "has no Sey; did you mean Say"),
        (f"{HERE}:no_task", "is no task: it has no methods prompt and verify"),
        (f"{HERE}:REST", "is no task"),
        (f"{HERE}:NeedsAnArgument", "calling it without arguments raises TypeError: .*'size'"),
        (f"{HERE}:NoVerifier", "is no task: it has no method verify"),
    ],
)
def test_what_is_no_task_is_one_line(name: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told) as caught:
        load(name)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("WrongAbility", "ability is 'visual': choose one of knowledge"),
        ("WrongReward", "reward is 'bleu': choose one of exact, .*, tests, or write verify"),
        ("TwoJudges", "it has a reward and a method verify: leave one of them out"),
        ("WrongTimeout", "timeout_s is 0: give a number of seconds"),
        ("WrongCount", r"count\('train'\) is 0.5: return how many"),
    ],
)
def test_a_wrong_attribute_is_one_line(name: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        about(name, load(f"{HERE}:{name}"))


def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_one.py").write_text("x = 1\nx.y\n")
    (tmp_path / "broken_two.py").write_text("import surely_not_installed\n")
    with pytest.raises(MoonflowError, match=r"raises AttributeError: .* \(line 2 of broken_one.py\)"):
        load("broken_one:Task")
    with pytest.raises(MoonflowError, match="importing broken_two raises ModuleNotFoundError: .*surely_not_installed"):
        load("broken_two:Task")
