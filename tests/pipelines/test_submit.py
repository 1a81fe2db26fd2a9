"""``moonflow submit`` against an API server that speaks KFP's REST over HTTP."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines import cli, kubeflow
from pipelines.compile import compile_ir, compile_kubernetes
from pipelines.profile import load_profile
from tests.http_server import nobody
from tests.pipelines.kfp_server import FakeKFP, as_struct, serving
from tests.pipelines.shipped import compiled, documents


class Result(NamedTuple):
    status: int
    out: str
    err: str


Submit = Callable[..., Result]


def run(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Result:
    """``moonflow`` in a thread: kfp walks the whole call stack for each setting of a task, and pytest's is deep."""
    monkeypatch.setattr(sys, "argv", argv)
    statuses: list[object] = []

    def main() -> None:
        try:
            cli.main()
        except SystemExit as ended:
            statuses.append(ended.code)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    (status,) = statuses
    return Result(int(status or 0), *capsys.readouterr())  # type: ignore[call-overload]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TOKEN", "UI_ENDPOINT", "SA_TOKEN_PATH"):
        monkeypatch.delenv(f"KF_PIPELINES_{name}", raising=False)


@pytest.fixture
def kfp() -> Iterator[FakeKFP]:
    with serving(FakeKFP()) as server:
        yield server


@pytest.fixture
def submit(kfp: FakeKFP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """``moonflow submit --profile small --host <the server> ...``"""

    def call(*arguments: str, host: str = "", profile: str = "small") -> Result:
        given = ["moonflow", "submit", "--profile", profile, "--host", host or kfp.host, *arguments]
        return run(given, monkeypatch, capsys)

    return call


def good(result: Result) -> str:
    assert (result.status, result.err) == (0, "")
    return result.out


def bad(result: Result) -> str:
    assert (result.status, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1 and result.err.startswith("moonflow: ")
    return result.err


def test_the_first_submission_makes_everything_and_prints_where_it_is(
    kfp: FakeKFP, submit: Submit, tmp_path: Path
) -> None:
    out = good(submit("--version", "1.0"))
    ((pipeline_id, pipeline),) = kfp.pipelines.items()
    ((version_id, version),) = kfp.versions.items()
    ((run_id, run),) = kfp.runs.items()
    ((experiment_id, experiment),) = kfp.experiments.items()
    assert f"uploaded: {kfp.host}/#/pipelines/details/{pipeline_id}/version/{version_id}\n" in out
    assert f"{kfp.host}/#/runs/details/{run_id}\n" in out
    assert (pipeline["name"], experiment["display_name"]) == ("moonflow-small", "moonflow")
    assert (version["name"], version["display_name"]) == ("moonflow-small-1-0", "1.0")
    assert "git commit" in version["description"]
    spec, platform = compiled("small")
    assert version["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}
    assert run["experiment_id"] == experiment_id
    assert run["pipeline_version_reference"] == {"pipeline_id": pipeline_id, "pipeline_version_id": version_id}
    assert run["runtime_config"].get("parameters", {}) == {} and run["service_account"] == "moonflow-step"


def test_the_same_content_is_used_again(kfp: FakeKFP, submit: Submit) -> None:
    good(submit())
    assert "already there" in good(submit())
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.experiments), len(kfp.runs)) == (1, 1, 1, 2)


def test_a_new_version_joins_the_same_pipeline_however_many_there_are(kfp: FakeKFP, submit: Submit) -> None:
    for version in ("1.0", "1.1", "1.2", "1.3"):
        assert "uploaded" in good(submit("--version", version, "--upload-only"))
    assert "already there" in good(submit("--version", "1.3"))
    assert len(kfp.pipelines) == 1 and {v["display_name"] for v in kfp.versions.values()} == {
        "1.0",
        "1.1",
        "1.2",
        "1.3",
    }


def test_other_content_under_a_taken_version_is_refused(kfp: FakeKFP, submit: Submit) -> None:
    good(submit("--version", "1.0", "--upload-only"))
    line = bad(submit("--version", "1.0", "--set", "task.parl.pool=big"))
    assert "moonflow-small 1.0" in line and "--version" in line
    assert not kfp.runs and len(kfp.versions) == 1
    good(submit("--version", "1.1", "--set", "task.parl.pool=big"))


def jobs(*steps: str) -> list[str]:
    """The options that make these steps TrainJobs."""
    return [word for step in steps for word in ("--set", f"task.{step}.launcher=trainjob")]


def test_programs_of_a_model_may_run_in_trainjobs_only(kfp: FakeKFP, submit: Submit) -> None:
    def told(*steps: str) -> str:
        return "".join(
            f"moonflow: {step} runs programs that a model writes, in a pod that has the token of moonflow-step: add "
            f"--set task.{step}.launcher=trainjob, or set it in the profile\n"
            for step in steps
        )

    for profile, steps in (
        ("tiny", ("visual_rl", "joint_rl", "parl", "evaluate")),
        ("visual-rl", ("visual_rl", "evaluate")),
        ("fusion", ("fusion_arm",)),
        ("claims-sft", ("sft_arm",)),
        ("claims-rl", ("rl_arm",)),
        ("claims-swarm", ("swarm_arm",)),
        ("claims-toggle", ("toggle_arm",)),
    ):
        assert submit("--upload-only", profile=profile) == (2, "", told(*steps)), profile
    assert bad(submit("--upload-only", *jobs("visual_rl", "joint_rl", "parl"), profile="tiny")) == told("evaluate")
    assert kfp.requests == []
    good(submit("--upload-only", *jobs("visual_rl", "joint_rl", "parl", "evaluate"), profile="tiny"))


def test_a_checkpoint_that_a_cluster_cannot_read_is_refused(kfp: FakeKFP, submit: Submit) -> None:
    on_cluster = jobs("visual_rl", "joint_rl", "parl", "evaluate")
    for source in ("", "runs/base", "file:///srv/base"):
        line = bad(submit("--set", f"import_checkpoint.source={source}", *on_cluster, profile="post_train"))
        assert f"import_checkpoint.source is {source!r}" in line and "add --set import_checkpoint.source=s3://" in line
    good(submit("--upload-only", *on_cluster, profile="post_train"))  # the form asks for it
    assert not kfp.runs
    out = good(submit("--set", "import_checkpoint.source=s3://bucket/runs/base", *on_cluster, profile="post_train"))
    assert "import_checkpoint's source" in out
    (run,) = kfp.runs.values()
    assert run["runtime_config"]["parameters"] == {"p01_import_checkpoint_source": "s3://bucket/runs/base"}


def test_step_parameters_are_the_runs_and_leave_the_version(kfp: FakeKFP, submit: Submit) -> None:
    good(submit())
    overrides = ("mid_train.steps=7", "joint_rl.learning_rate=1e-5", "evaluate.floors=", "run.preset=tiny")
    out = good(
        submit("--run-id", "earlier", *(part for each in overrides for part in ("--set", each)), "--version", "2")
    )
    assert "uploaded" in out  # run.preset is the profile's: another version
    (first, second) = kfp.runs.values()
    assert "parameters" not in first["runtime_config"] or first["runtime_config"]["parameters"] == {}
    assert second["runtime_config"]["parameters"] == {
        "p00_run_id": "earlier",
        "p04_mid_train_steps": 7,
        "p08_joint_rl_learning_rate": 1e-5,
        "p10_evaluate_floors": "",
    }


def test_upload_only_starts_nothing(kfp: FakeKFP, submit: Submit) -> None:
    good(submit("--upload-only"))
    assert kfp.versions and not (kfp.experiments or kfp.runs or kfp.recurring)


def test_a_dry_run_says_what_it_would_do_and_asks_nobody(kfp: FakeKFP, submit: Submit) -> None:
    out = good(submit("--dry-run", "--set", "mid_train.steps=7", "--version", "1.0"))
    assert "moonflow-small version 1.0" in out and kfp.host in out and "p04_mid_train_steps=7" in out
    assert "cron '@daily'" in good(submit("--dry-run", "--recurring", "@daily"))
    assert kfp.requests == []


DOCTOR = "`moonflow doctor --cluster` says what this server repeats"


@pytest.mark.parametrize("arguments", [(), ("--recurring", "@daily"), ("--upload-only",)])
def test_a_profile_with_retries_ends_with_where_their_meaning_is_told(
    submit: Submit, arguments: tuple[str, ...]
) -> None:
    lines = good(submit("--set", "run.retries=3", *arguments)).splitlines()
    assert lines[-1] == f"retries    3 a step: {DOCTOR}"
    assert len([line for line in lines if "doctor" in line]) == 1


def test_a_profile_without_retries_says_nothing_of_them(submit: Submit) -> None:
    out = good(submit("--set", "run.retries=0"))
    assert "retries" not in out and "doctor" not in out


def test_a_schedule_is_set_kept_and_replaced(kfp: FakeKFP, submit: Submit) -> None:
    out = good(submit("--recurring", "0 0 3 * * 1", "--set", "mid_train.steps=7"))
    ((first, made),) = kfp.recurring.items()
    assert f"set: {kfp.host}/#/recurringrun/details/{first}\n" in out and not kfp.runs
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (made["display_name"], made["mode"], made["no_catchup"]) == ("moonflow-small", "ENABLE", True)
    assert made["runtime_config"]["parameters"] == {"p04_mid_train_steps": 7}

    assert "as it was" in good(submit("--recurring", "0 0 3 * * 1", "--set", "mid_train.steps=7"))
    assert list(kfp.recurring) == [first]

    for other in (("0 0 4 * * 1",), ("0 0 4 * * 1", "--set", "mid_train.steps=9"), ("0 0 4 * * 1", "--version", "2")):
        before = set(kfp.recurring)
        good(submit("--recurring", *other))
        assert len(kfp.recurring) == 1 and not before & set(kfp.recurring)
    # The new schedule is there before the old one goes.
    changes = [method for method, path in kfp.requests if "recurringruns" in path and method != "GET"]
    assert changes == ["POST", *("POST", "DELETE") * 3]

    good(submit("--recurring", "0 0 5 * * *", "--name", "nightly"))
    assert len(kfp.recurring) == 2, "another name is another schedule"


def test_a_paused_schedule_is_set_again(kfp: FakeKFP, submit: Submit) -> None:
    good(submit("--recurring", "@daily"))
    ((first, made),) = kfp.recurring.items()
    made["mode"] = "DISABLE"
    good(submit("--recurring", "@daily"))
    assert len(kfp.recurring) == 1 and first not in kfp.recurring


def test_a_server_for_many_users_wants_a_namespace(kfp: FakeKFP, submit: Submit) -> None:
    kfp.multi_user = True
    assert "--namespace moonflow" in bad(submit())
    good(submit("--namespace", "team-a"))
    for held in (kfp.pipelines, kfp.experiments):
        assert [each["namespace"] for each in held.values()] == ["team-a"]
    good(submit("--namespace", "team-b"))
    assert len(kfp.pipelines) == len(kfp.versions) == 2, "each namespace has its own"


def test_a_server_for_one_user_wants_none(submit: Submit) -> None:
    refused = bad(submit("--namespace", "moonflow"))
    assert "its own namespace" in refused and "many users" in refused and "leave --namespace out" in refused


def test_tokens_come_by_flag_variable_and_file(
    kfp: FakeKFP, submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kfp.token = "let-me-in"
    assert "--token" in bad(submit()) and "--token" in bad(submit("--token", "wrong"))
    good(submit("--token", "let-me-in"))
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "let-me-in")
    good(submit())
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    (tmp_path / "token").write_text("let-me-in\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    good(submit())
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "none"))
    assert "KF_PIPELINES_SA_TOKEN_PATH" in bad(submit())


def test_addresses_come_by_variable_and_the_ui_may_be_elsewhere(
    kfp: FakeKFP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"{kfp.host}/")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline/")
    out = good(run(["moonflow", "submit", "--profile", "small"], monkeypatch, capsys))
    assert f"https://kubeflow.example.org/pipeline/#/runs/details/{next(iter(kfp.runs))}\n" in out


ERROR = '{"error": "first\\nsecond", "code": 7, "message": "first\\nsecond"}'
PAGE = "<!doctype html><title>Log in</title>"


@pytest.mark.parametrize(
    ("pattern", "status", "body", "headers", "says"),
    [
        ("healthz", 401, "", {}, ["login", "--token"]),
        ("healthz", 302, "", {"Location": "/dex/auth"}, ["login", "302", "--token"]),
        ("healthz", 200, PAGE, {"Content-Type": "text/html"}, ["login page", "--host"]),
        ("healthz", 404, PAGE, {"Content-Type": "text/html"}, ["its health", "v2beta1", "--host"]),
        ("upload_version", 403, ERROR, {}, ["does not allow version moonflow-small", "first second", "--namespace"]),
        ("upload_version", 400, '{"error_message": "spec too large"}', {}, ["400", "spec too large"]),
        ("POST .*/runs$", 500, ERROR, {}, ["a new run", "500", "first second"]),
        ("POST .*/runs$", 503, "upstream connect error", {}, ["503", "upstream connect error"]),
        ("GET .*/experiments$", 403, ERROR, {}, ["experiments", "first second"]),
    ],
)
def test_every_refusal_is_one_line(
    kfp: FakeKFP, submit: Submit, pattern: str, status: int, body: str, headers: dict[str, str], says: list[str]
) -> None:
    kfp.failures.append((pattern, status, body, headers))
    result = submit()
    assert result.status == 2 and len(result.err.splitlines()) == 1
    for text in (kfp.host, *says):
        assert text in result.err
    assert not kfp.runs


def test_a_busy_server_is_asked_again_but_never_to_start_twice(kfp: FakeKFP, submit: Submit) -> None:
    kfp.failures += [("GET .*/pipelines/names", 503, "", {}), ("GET .*/experiments", 429, "", {"Retry-After": "0"})]
    good(submit())
    kfp.failures.append(("POST .*/runs$", 503, "", {}))
    assert submit().status == 2
    assert [path for method, path in kfp.requests if path.endswith("/runs")] == ["/apis/v2beta1/runs"] * 2
    assert len(kfp.runs) == 1


def test_a_server_that_is_not_there(submit: Submit) -> None:
    with nobody() as address:
        line = bad(submit(host=address))
    assert "cannot reach" in line and "--host" in line


def test_a_server_that_hangs(kfp: FakeKFP, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "TIMEOUT_S", (1, 1))
    kfp.delay_s = 1.5
    assert "cannot reach" in bad(submit()) and len(kfp.requests) == 1


def test_two_submissions_at_once_share_the_pipeline_and_the_version(
    kfp: FakeKFP, submit: Submit, tmp_path: Path
) -> None:
    compile_ir(load_profile("small"), tmp_path / "p.yaml")
    package = (tmp_path / "p.yaml").read_text()

    def pipeline() -> None:
        kfp.create_pipeline({"name": "moonflow-small", "display_name": "moonflow-small"})

    def version() -> None:
        (there,) = kfp.pipelines
        kfp.create_version({"pipelineid": there, "name": "moonflow-small-1-0"}, package)

    kfp.before |= {"pipelines": pipeline, "pipelines/upload_version": version}
    assert "already there" in good(submit("--version", "1.0"))
    assert not kfp.before and (len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 1, 1)


def test_a_version_that_argo_cd_synced_is_the_one_submit_finds(kfp: FakeKFP, submit: Submit, tmp_path: Path) -> None:
    """The objects' names and content are what an upload would make: they are held under the same names by a server."""
    compile_kubernetes(load_profile("small"), tmp_path / "o.yaml", "kubeflow", "1.0")
    pipeline, version = documents(tmp_path / "o.yaml")
    made = kfp.create_pipeline({"name": pipeline["metadata"]["name"], "display_name": pipeline["spec"]["displayName"]})
    content = {"pipeline_spec": version["spec"]["pipelineSpec"], "platform_spec": version["spec"]["platformSpec"]}
    kfp.versions["synced"] = {
        "pipeline_id": made["pipeline_id"],
        "pipeline_version_id": "synced",
        "name": version["metadata"]["name"],
        "display_name": version["spec"]["displayName"],
        "pipeline_spec": as_struct(content),
    }
    assert "already there" in good(submit("--version", "1.0"))
    assert list(kfp.versions) == ["synced"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "kubeflow.example.org"), "whole address"),
        (("--host", ""), "KF_PIPELINES_ENDPOINT"),
        (("--version", "Version 1"), "--version"),
        (("--recurring", "0 3 * * 1"), "six fields"),
        (("--recurring", "@daily", "--run-id", "x"), "--run-id"),
        (("--run-id", "a/b"), "slash"),
        (("--upload-only", "--set", "mid_train.steps=7"), "p04_mid_train_steps"),
        (("--upload-only", "--recurring", "@daily"), "--recurring"),
        (("--set", "mid_train.step=7"), "did you mean 'steps'"),
        (("--ca-cert", "nowhere.pem"), "--ca-cert nowhere.pem"),
        (
            ("--set", "task.evaluate.launcher=ranks", "--set", "task.evaluate.processes=2"),
            "evaluate cannot run as 2 ranks",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(
    kfp: FakeKFP, submit: Submit, arguments: tuple[str, ...], says: str
) -> None:
    assert says in bad(submit(*arguments))
    assert kfp.requests == []
