"""Fine-tuning on successes: what is read, on how many ranks, what becomes of a killed run, and without successes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.rejection_sft import stage
from components.rejection_sft.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import SUCCESSES, read_state
from model.checkpoint.load import load_model
from model.data.batches.folder import DataFolder
from model.data.families import FAMILIES
from model.data.order.family_shares import TRAJECTORIES
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_prompt
from model.network.config import preset
from model.network.initial import new_model
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from model.rl.groups import Group
from model.rl.successes import Successes
from tests.gloo import on_ranks
from tests.samples import make_episode
from tests.step_services import FolderServices, Killed
from tests.tiny_folders import write_training_folder
from tests.training import save_checkpoint

CONFIG = Config(steps=6, rows=1, tokens_per_row=256, learning_rate=1e-2, products="float32", checkpoint_every=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_folder(tmp_path_factory.mktemp("data"), TRAJECTORIES, count=12)


def right_answer(folder: DataFolder, task: Sample) -> Group:
    """What a policy that reads the picture would have sampled."""
    tokenizer = folder.tokenizer
    prompt = tokenize_prompt(task, tokenizer, folder.image_config).input_ids.tolist()
    said = [*tokenizer.encode(str(task.answer)), tokenizer.im_end_id]
    mask = [False] * len(prompt) + [True] * len(said)
    return Group(task, [make_episode(input_ids=[*prompt, *said], policy_mask=mask, reward=1.0)], [0.0])


def policy(data: Path, folder: Path, count: int | None) -> Path:
    """A checkpoint that keeps so many successes; None: its training kept none at all."""
    save_checkpoint(folder, new_model(preset("tiny"), seed=5), data, None, {})
    successes = Successes(100, 2, 1.0)
    samples = (FAMILIES["digit_string"].sample(0, "train", number) for number in range(200))
    tasks = islice((sample for sample in samples if sample.reward), count or 0)  # the others are captions
    successes.add(1, [right_answer(DataFolder(data), task) for task in tasks])
    for name, content in successes.files().items() if count is not None else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def inputs(data: Path, folder: Path) -> dict[str, str]:
    return {"data": str(data), "parent": str(folder), "successes": str(folder)}


def test_successes_have_their_share_of_the_tokens_and_a_killed_run_ends_with_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    given, whole = inputs(data, policy(data, tmp_path / "policy", 8)), FolderServices(tmp_path / "whole")
    output = stage.run(CONFIG, given, whole)
    tokens = read_state(output)["data_position"]["tokens"]
    assert 0.2 < tokens[SUCCESSES] / sum(tokens.values()) < 0.8
    assert whole.logged[0] == {"successes/kept": 8.0, "successes/used": 8.0} and not whole.warnings
    assert any("loss/vision" in row for row in whole.logged.values()), "their pictures are seen"

    with pytest.raises(Killed):
        stage.run(CONFIG, given, FolderServices(tmp_path / "again", kill_at=5))
    again = FolderServices(tmp_path / "again")
    resumed = load_model(stage.run(CONFIG, given, again)).state_dict()
    assert 0 not in again.logged
    assert all(torch.equal(value, resumed[name]) for name, value in load_model(output).state_dict().items())


def tuned(
    folder: Path, config: Config, given: dict[str, str], ranks: Ranks
) -> tuple[FolderServices, dict[str, Tensor]]:
    """The step's services and the weights that it published."""
    services = FolderServices(folder, ranks=ranks)
    return services, load_model(stage.run(config, given, services)).state_dict()


def on_rank(
    rank: int, folder: Path, config: Config, given: dict[str, str], empty: dict[str, str], layout: Layout
) -> Any:
    ranks = Ranks.join(layout)
    services, weights = tuned(folder / "tuned", config, given, ranks)
    passed_on, same = tuned(folder / "passed-on", config, empty, ranks)
    return services.logged, services.saved, weights, passed_on.saved, same


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(), Layout(expert_parallel=2)], ids=["all experts", "divided experts"])
def test_two_ranks_learn_and_publish_what_one_does(data: Path, tmp_path: Path, layout: Layout) -> None:
    config = CONFIG.model_copy(update={"steps": 3, "rows": 2, "learning_rate": 1e-3, "checkpoint_every": 0})
    given, empty = (inputs(data, policy(data, tmp_path / f"policy-{count}", count)) for count in (8, 0))
    alone, expected = tuned(tmp_path / "alone", config, given, Ranks())
    first, second = on_ranks(2, on_rank, tmp_path, tmp_path, config, given, empty, layout)
    before = load_model(Path(empty["parent"])).state_dict()
    for logged, _, weights, _, same in (first, second):
        for step, row in alone.logged.items():
            figures = {name: value for name, value in row.items() if name.startswith(("loss", "successes/"))}
            assert {name: logged[step][name] for name in figures} == pytest.approx(figures, rel=1e-4), step
        assert_close(weights, expected, 1e-4)
        assert_close(same, before, 0)
    assert (first[1], first[3]) == (alone.saved, [(0, 0, True)]) and second[1] == second[3] == [], "the first publishes"


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=within, rtol=0, msg=lambda told, name=name: f"{name}: {told}"
        )


@pytest.mark.parametrize(("count", "row", "why"), [
    (0, 256, "no success was kept"), (2, 16, "none of 2 successes fits into a row of 16 tokens"),
])  # fmt: skip
def test_without_a_success_that_fits_the_checkpoint_is_passed_on(
    data: Path, tmp_path: Path, count: int, row: int, why: str
) -> None:
    folder, services = policy(data, tmp_path / "policy", count), FolderServices(tmp_path / "run")
    output = stage.run(CONFIG.model_copy(update={"tokens_per_row": row}), inputs(data, folder), services)
    assert services.warnings == [f"{why}: the checkpoint is passed on as it is"]
    assert services.saved == [(0, 0, True)]
    before, after = load_model(folder).state_dict(), load_model(output).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_checkpoint_whose_training_kept_nothing_is_an_error_that_names_the_parameter(
    data: Path, tmp_path: Path
) -> None:
    folder = policy(data, tmp_path / "policy", None)
    with pytest.raises(MoonflowError, match="did not keep successes; name one of visual_rl"):
        stage.run(CONFIG, inputs(data, folder), FolderServices(tmp_path / "run"))


def test_a_family_cannot_be_added_under_a_name_that_is_there(data: Path) -> None:
    folder = DataFolder(data)
    with pytest.raises(MoonflowError, match="has a family 'fact_qa' already"):
        folder.with_family("fact_qa", [], folder.source)
