"""A step waits for what is away, and for nothing else."""

from __future__ import annotations

import weakref

import pytest

from components.release import registry
from components.release.forge import Forge
from components.release.git import clone
from components.runtime.launcher.retry import RetryPolicy, retry
from components.runtime.store.s3 import S3Store
from model.boundary.errors import MoonflowError, Transient
from tests.http_server import Handler, nobody, serving

QUICK = RetryPolicy(attempts=4, first_s=0.001, longest_s=0.002)


class Failing:
    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "made"


def test_a_service_that_comes_back_costs_a_pause_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    work = Failing(2, Transient("the store is away"))
    assert retry("parl", work, QUICK) == "made" and work.calls == 3
    said = capsys.readouterr().err
    assert "parl: the store is away\nparl: attempt 1 of 4, the next in 0 s\n" in said and "attempt 2 of 4" in said


@pytest.mark.parametrize(("error", "calls"), [
    (Transient("the store is away"), 4), (MoonflowError("a wrong parameter"), 1), (ZeroDivisionError(), 1),
])  # fmt: skip
def test_repetition_has_a_bound_and_other_errors_get_none(error: Exception, calls: int) -> None:
    work = Failing(99, error)
    with pytest.raises(type(error)) as told:
        retry("parl", work, QUICK)
    assert told.value is error and work.calls == calls


@pytest.mark.parametrize("variables", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MOONFLOW_RUN_DIR": "runs/a"}],
                         ids=["laptop", "notebook in a cluster"])  # fmt: skip
def test_a_local_run_does_not_wait(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "MOONFLOW_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    work = Failing(1, Transient("the store is away"))
    with pytest.raises(Transient):
        retry("parl", work)
    assert work.calls == 1
    assert 600 < sum(min(15 * 2**n, 240) for n in range(RetryPolicy().attempts - 1)) < 1200, "half of it is over 5 min"


def test_a_failed_attempt_leaves_no_model_beside_the_next_one_s() -> None:
    class Model:
        error: Exception

    before: list[weakref.ref[Model]] = []

    def work() -> bool:
        if before:
            return before[0]() is None
        model = Model()
        before.append(weakref.ref(model))
        model.error = Transient("the store is away")
        raise model.error

    assert retry("parl", work, QUICK)


class Answer(Handler):
    status: int

    def answer(self) -> None:
        self.body()
        self.reply(self.status)

    do_GET = do_POST = do_PUT = do_HEAD = answer


def ask(service: str, address: str) -> None:
    if service == "store":
        S3Store("s3://bucket/runs", endpoint=address, key="k", secret="s").check()
    elif service == "registry":
        registry.aliased("moonflow", "champion")
    elif service == "forge":
        Forge("github", f"{address}/o/r.git").ensure("branch", "commit", "title", "text")
    else:
        with clone(f"{address}/o/r.git"):
            pass


@pytest.mark.parametrize("service", ["store", "registry", "forge", "git"])
@pytest.mark.parametrize("state", ["away", "overloaded", "refusing"])
def test_each_service_tells_being_away_from_refusing(service: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_GIT_TOKEN", "token")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = nobody() if state == "away" else serving(Answer, status=503 if state == "overloaded" else 403)
    with place as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MoonflowError) as told:
            ask(service, address)
    assert isinstance(told.value, Transient) == (state != "refusing"), told.value
