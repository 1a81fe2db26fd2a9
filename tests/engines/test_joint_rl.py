"""Joint RL on the stock SGLang: two rounds, one of two replicas killed in between."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from model.checkpoint.export import export
from model.network.initial import new_model
from model.rl import outcome_training
from tests.corpus import small_tokenizer
from tests.drawn import randomise
from tests.engines.checkpoint import YARN, engine_config
from tests.engines.server import serving
from tests.odd_rewards import run_odd_episode
from tests.step_services import FolderServices
from tests.tiny_folders import write_training_folder

pytestmark = [pytest.mark.engines, pytest.mark.timeout(3600)]

FAMILIES = ("fact_qa", "digit_string", "recall")
CONFIG = Config(
    engine="sglang", endpoints="http://replaced:1", iterations=2, prompts_per_iteration=4, samples_per_prompt=4,
    learning_rate=1e-3, max_new_tokens=12, checkpoint_every=0, ptx_weight=0.0, max_failed_episodes=0.0, seed=1,
)  # fmt: skip


def test_two_rounds_end_and_trainer_and_sampler_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_training, "run_episode", run_odd_episode)
    model = new_model(engine_config(YARN))
    randomise(model, 7, std=0.1)
    export(model, small_tokenizer(), tmp_path / "parent")
    data = write_training_folder(tmp_path / "data", FAMILIES)
    services = FolderServices(tmp_path)
    caplog.set_level("INFO", logger="model.rollout.sglang_pool")
    with ExitStack() as doomed, serving("sglang", tmp_path / "parent", tmp_path / "stays.log") as stays:
        dies = doomed.enter_context(serving("sglang", tmp_path / "parent", tmp_path / "dies.log"))
        services.on_update = lambda step: doomed.close()
        config = CONFIG.model_copy(update={"endpoints": f"{dies},{stays}"})
        stage.run(config, {"data": str(data), "parent": str(tmp_path / "parent")}, services)
    rounds = [services.logged[number] for number in (1, 2)]
    assert all(row["episodes/failed"] == 0.0 and abs(row["rollout/mismatch_kl"]) <= 1e-3 for row in rounds)
    pushed = [record.getMessage() for record in caplog.records if record.getMessage().startswith("weights ")]
    assert "on 2 of 2 replicas" in pushed[0] and "on 1 of 2 replicas" in pushed[-1]
    counts = [line.split("by digest ")[1].split(" parameters")[0].split(" of ") for line in pushed]
    assert all(equal == of for equal, of in counts), counts  # on a CPU in float32 every pushed tensor is proven
