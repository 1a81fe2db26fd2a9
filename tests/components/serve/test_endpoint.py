"""The wait for a synced endpoint, against real servers of ours; one without a manifest stands for other weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.release import fetch as init_container
from components.release import overlay
from components.release.fetch import verify
from components.runtime.tracking.progress import StepProgress
from components.serve import endpoint
from components.serve.endpoint import EndpointAnswer, ask, await_answer
from model.boundary.errors import MoonflowError
from tests.components.serve.media_messages import data_url
from tests.http_server import nobody
from tests.odd_media import blank_png


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "POLL_S", 0.01)


def asked(address: str) -> EndpointAnswer:
    return ask(address, "moonflow", "Which digits?", data_url(blank_png(84, 28)), 4)


@pytest.fixture
def refusing() -> Iterator[str]:
    with nobody() as address:
        yield address


def test_an_answer_names_the_manifest_of_its_weights(address: str, scripted_address: str, checkpoint: Path):
    assert asked(f"{address}/").manifest_sha256 == verify(checkpoint)
    assert asked(scripted_address).manifest_sha256 == ""


def test_old_weights_and_no_answer_are_waited_for(
    address: str, scripted_address: str, refusing: str, checkpoint: Path, tmp_path: Path
):
    behind = iter([refusing, scripted_address, refusing, address])  # what one Service leads to, while pods are replaced

    def through_service(_: str) -> EndpointAnswer:
        return asked(next(behind))

    answer = await_answer(through_service, "http://service", verify(checkpoint), 60.0, StepProgress(tmp_path, "serve"))
    assert answer.manifest_sha256 == verify(checkpoint) and next(behind, None) is None


def test_an_endpoint_that_does_not_sync_ends_the_wait_in_one_line(
    address: str, scripted_address: str, refusing: str, checkpoint: Path, tmp_path: Path
):
    for where, said in ((address, f"it answers from weights {verify(checkpoint)[:12]}"),
                        (scripted_address, "it answers from weights that it does not name"),
                        (refusing, "APIConnectionError")):  # fmt: skip
        with pytest.raises(MoonflowError, match="synced with Git") as caught:
            await_answer(asked, where, "f" * 64, 0.05, StepProgress(tmp_path, "serve"))
        assert said in str(caught.value) and where in str(caught.value) and "\n" not in str(caught.value)


def test_before_the_first_promotion_the_init_container_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MOONFLOW_STORE", raising=False)
    with pytest.raises(SystemExit) as ended:
        init_container.main(["--uri", overlay.NONE, "--sha256", overlay.NONE, "--to", str(tmp_path / "checkpoint")])
    assert "nothing is promoted to this environment yet" in str(ended.value.code)
