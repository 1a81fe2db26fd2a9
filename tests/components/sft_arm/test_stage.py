from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.ablation.sft.arms import SUITES, TWINS
from components.sft_arm.config import Config
from components.sft_arm.stage import final_metrics, held_out_tasks
from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.evals.score import KindScore, Score
from tests.tiny_folders import write_data_folder

CONFIG = Config(program_samples=3, samples=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("data"))


def test_image_programs_are_asked_as_often_as_they_are_to_be_and_every_suite_its_first_tasks(data: Path) -> None:
    """The suite's share of the tasks is for evaluations of many suites; here image programs are what is measured."""
    tasks = held_out_tasks(DataFolder(data), CONFIG)
    assert {name: len(samples) for name, samples in tasks.items()} == {name: 2 for name in SUITES} | {TWINS[0]: 3}
    assert [sample.key for sample in tasks[TWINS[0]]] == [
        f"image_program_image-{kind}-0000000{number}"
        for number, kind in enumerate(("crop", "binarise", "measure_length"))
    ]


def test_suites_that_the_data_lacks_are_left_out_unless_they_are_tool_use_on_images(data: Path, tmp_path: Path) -> None:
    index = json.loads((data / "index.json").read_text())

    def without(*families: str) -> DataFolder:
        kept = {name: entry for name, entry in index["families"].items() if name not in families}
        folder = DataFolder(data)
        folder.index = {**index, "families": kept}
        return folder

    assert set(held_out_tasks(without("ocr_text", "scene_box"), CONFIG)) == set(SUITES) - {"ocr_text", "scene_box"}
    with pytest.raises(MoonflowError, match="no held-out tasks of image_program_image, which.*the mixture broad"):
        held_out_tasks(without(TWINS[0]), CONFIG)


def test_all_arms_log_the_same_names(data: Path) -> None:
    tasks = {name: samples for name, samples in held_out_tasks(DataFolder(data), CONFIG).items() if name in TWINS}
    score = Score(0.5, 0.1, 3, 1.0, 10, failed=1, tool_calls=0.25, kinds={"crop": KindScore(0.5, 1.0, 1)})
    found = final_metrics({TWINS[0]: score, TWINS[1]: Score(1.0, 0.0, 2, 1.0, 5)}, tasks)
    assert found == {
        "episodes/failed": 1.0,
        "eval/image_program_image/coding/image": 0.5,
        "tool_calls/image_program_image": 0.25,
        "kind/image_program_image/crop/value": 0.5,
        "kind/image_program_image/crop/tool_calls": 1.0,
        "kind/image_program_image/crop/n": 1.0,
        "eval/array_tool_image/coding/image": 1.0,
        "tool_calls/array_tool_image": 0.0,
    }
