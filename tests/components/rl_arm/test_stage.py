"""The arms of the RL ablation, with a model of random weights: each from the checkpoint of another."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from components.ablation.rl.arms import ARMS, SUITES
from components.rl_arm import stage
from components.rl_arm.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.data.batches.folder import DataFolder
from model.data.families import FAMILIES
from model.data.samples.shards import write_shard
from model.data.samples.tokenize import tokenize_prompt
from model.network.config import preset
from model.network.initial import new_model
from model.rl import outcome_training
from model.rl.groups import Group
from model.rl.outcome_training import OutcomeTask
from model.rl.successes import Kept, Successes
from tests.samples import make_episode
from tests.step_services import FolderServices, Killed
from tests.tiny_folders import eval_samples, write_data_folder, write_training_folder
from tests.training import save_checkpoint

TRAINED = ("array_tool", "image_program", "fact_qa", "digit_count", "sub_search", "needle")
MEASURED = ("digit_count", "fact_qa", "needle")
CONFIG = Config(
    seed=1, visual_families="digit_count", start_steps=2, tuning_steps=2, rows=1, tokens_per_row=512,
    products="float32", visual_iterations=2, joint_iterations=1, prompts_per_iteration=2, samples_per_prompt=2,
    checkpoint_every=1, kept_reward=0.01, samples=2, max_failed_episodes=0.5,
)  # fmt: skip


class Services(FolderServices):
    """Keeps the arm's checkpoint and its result, which a step publishes together."""

    def publish(self, folder: Any, *_: Any, **fields: Any) -> Any:
        if "extra" not in fields:
            return super().publish(folder, *_)
        self.output, self.result, self.fields = folder, fields["extra"]["ablation"], fields
        return self


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Train shards of some trajectories and tasks, held-out tasks of three suites, and fresh weights."""
    data = write_training_folder(tmp_path_factory.mktemp("data"), TRAINED, count=12)
    index = json.loads((data / "index.json").read_text())
    (data / "eval").mkdir()
    for name in MEASURED:
        (data / f"eval/{name}.tar").write_bytes(write_shard(eval_samples(name, 3)))
        index["families"][name]["eval"] = [{"shard": f"eval/{name}.tar", "samples": 3}]
    (data / "index.json").write_text(json.dumps(index))
    parent = tmp_path_factory.mktemp("parent")
    save_checkpoint(parent, new_model(preset("tiny"), seed=5), data, None, {})
    return {"data": str(data), "parent": str(parent)}


@pytest.fixture(autouse=True)
def few_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some:
        trajectories = dict.fromkeys(("array_tool", "image_program", "fact_qa"), 1.0)

    monkeypatch.setattr(stage, "mixtures", lambda name: Some)


def keep(checkpoint: Path, data: Path, count: int) -> None:
    """Let the training of a checkpoint have kept so many episodes, of a policy that reads the picture."""
    folder, kept = DataFolder(data), Successes(100, 2, 1.0)
    samples = (FAMILIES["digit_count"].sample(0, "train", number) for number in range(200))
    groups = []
    for task in islice((sample for sample in samples if sample.reward), count):  # the others are captions
        prompt = tokenize_prompt(task, folder.tokenizer, folder.image_config).input_ids.tolist()
        said = [*folder.tokenizer.encode(str(task.answer)), folder.tokenizer.im_end_id]
        mask = [False] * len(prompt) + [True] * len(said)
        groups.append(Group(task, [make_episode(input_ids=[*prompt, *said], policy_mask=mask, reward=1.0)], [0.0]))
    kept.add(1, groups)
    for name, content in kept.files().items():
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(content)


def run(arm: str, inputs: dict[str, str], folder: Path, kill_at: int = 0, **more: Any) -> Services:
    services = Services(folder, kill_at)
    stage.run(CONFIG.model_copy(update={"arm": arm, **more}), inputs, services)  # type: ignore[arg-type]
    return services


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_the_arms_of_a_seed_are_a_chain_and_all_are_measured_alike(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    practised: list[OutcomeTask] = []
    train = outcome_training.train_policy

    def noted(model: Any, data: Any, task: OutcomeTask, *others: Any, **more: Any) -> None:
        practised.append(task)
        train(model, data, task, *others, **more)

    monkeypatch.setattr(stage, "train_policy", noted)
    made: dict[str, Services] = {}
    for name, arm in ARMS.items():
        given = {**inputs, **({"parent": str(made[arm.start].output)} if arm.start else {})}
        if arm.successes:
            given["successes"] = str(made[arm.successes].output)
        made[name] = run(name, given, tmp_path / name)
        if name == "visual":
            Kept.of(made[name].output)  # raises if what training kept did not come with the checkpoint
            keep(made[name].output, Path(inputs["data"]), 20)
        # Random weights earn nothing: only the pre-training loss changes them, and RL on images has none.
        assert same(made[name].output, Path(given["parent"])) == (name == "visual")
        assert not made[name].saved[-1][2], "what training saves does not end the step"
    for name, services in made.items():
        assert services.fields["kind"] == "checkpoint" and services.fields["complete"]
        assert (services.result["arm"], services.result["seed"]) == (name, 1)
        assert {suite: score["n"] for suite, score in services.result["scores"].items()} == dict.fromkeys(MEASURED, 2)
        logged = services.logged[stage.trained_steps(CONFIG.model_copy(update={"arm": name}))]
        assert {"eval/needle/knowledge/text", "eval/digit_count/reasoning/image", "episodes/failed"} <= set(logged)
    assert made["joint"].result["scores"]["needle"]["n"] == 2, "documents, whose end is asked for"
    assert made["rft"].result["tokens"] == pytest.approx(made["more_sft"].result["tokens"], rel=0.2)
    visual, joint = practised
    assert {visual.prompts[n].family for n in range(8)} == {"digit_count"} and visual.ptx_weight == 0.0
    families = {joint.prompts[n].family for n in range(12)}
    assert families == {"array_tool", "fact_qa", "digit_count", "sub_search"}, "a program needs more than 48 tokens"
    assert visual.toggle is None and joint.toggle is not None


def test_an_arm_that_was_killed_ends_with_the_same_weights(inputs: dict[str, str], tmp_path: Path) -> None:
    whole = run("joint", inputs, tmp_path / "whole", joint_iterations=2)
    with pytest.raises(Killed):
        run("joint", inputs, tmp_path / "again", kill_at=2, joint_iterations=2)
    again = run("joint", inputs, tmp_path / "again", joint_iterations=2)
    assert set(again.reports) == {2} and same(whole.output, again.output)
    assert not same(whole.output, Path(inputs["parent"]))
    assert whole.result == again.result


def test_a_policy_that_never_succeeded_leaves_rft_as_it_was(inputs: dict[str, str], tmp_path: Path) -> None:
    keep(tmp_path, Path(inputs["data"]), 0)
    tuned = run("rft", {**inputs, "successes": str(tmp_path)}, tmp_path / "rft")
    assert tuned.result["tokens"] == 0 and same(tuned.output, Path(inputs["parent"]))
    assert tuned.logged[0] == {"successes/kept": 0.0, "successes/used": 0.0}
    assert tuned.warnings == ["the policy has no success that fits into a row: the checkpoint is left as it is"]


def test_every_suite_has_its_first_tasks_and_a_trained_family_must_be_measured(tmp_path: Path) -> None:
    data = DataFolder(write_data_folder(tmp_path))
    tasks = stage.held_out_tasks(data, CONFIG)
    episodes = [name for name in SUITES if name != "needle"]  # the data has no documents
    assert {name: len(samples) for name, samples in tasks.items()} == dict.fromkeys(episodes, 2)
    del data.index["families"]["photo"]
    with pytest.raises(MoonflowError, match="no held-out tasks of photo, which.*mixture broad, or leave the family"):
        stage.held_out_tasks(data, CONFIG.model_copy(update={"visual_families": "digit_count,photo"}))
