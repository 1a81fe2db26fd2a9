from __future__ import annotations

from model.swarm.video.outage import AWAY, Outage


def test_requests_that_fail_together_are_one_failure() -> None:
    outage = Outage()
    assert not any(outage.failed(0.0, 10.0 + n) for n in range(8)), "all were under way when the server went away"
    assert not outage.failed(11.0, 20.0) and outage.failed(20.0, 30.0), "the third after two others"


def test_an_answer_between_failures_says_that_the_server_is_there() -> None:
    outage = Outage()
    for n in range(3 * AWAY):
        assert not outage.failed(n, n + 0.5)
        outage.answered()
