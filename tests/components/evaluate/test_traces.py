from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.evaluate.traces import EPISODES, TracedWatch
from model.evals.suites import SUITES, Suite
from model.rl.environment import Episode
from model.swarm.orchestrator import SwarmEpisode
from model.swarm.trace import Trace
from tests.samples import make_episode
from tests.step_services import FolderServices
from tests.swarm.test_trace import recorded


class Told:
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.suites: list[tuple[str, int]] = []

    def ended(self, suite: Suite, episode: Episode) -> None:
        self.ends.append(suite.name)

    def finished(self, suite: Suite, episodes: Sequence[Episode]) -> None:
        self.suites.append((suite.name, len(episodes)))


def test_the_first_swarm_episodes_of_a_suite_are_kept_and_the_gallery_hears_everything(tmp_path: Path) -> None:
    services, told = FolderServices(tmp_path), Told()
    watch = TracedWatch(services, "parl", told)  # type: ignore[arg-type]
    swarm = [SwarmEpisode(**vars(make_episode()), trace=recorded(2)) for _ in range(5)]
    watch.ended(SUITES["wide_search_swarm"], swarm[0])
    watch.finished(SUITES["wide_search_swarm"], swarm)
    watch.finished(SUITES["fact_qa"], [make_episode()])  # has no trace
    assert told.ends == ["wide_search_swarm"] and told.suites == [("wide_search_swarm", 5), ("fact_qa", 1)]
    assert len(services.files) == 2 * EPISODES
    trace = Trace.from_json(services.files["swarm/parl-wide_search_swarm-1.json"])
    assert trace.about["checkpoint"] == "parl" and trace.about["suite"] == "wide_search_swarm"
