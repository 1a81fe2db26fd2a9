"""The calls of ``moonflow submit`` to a Kubeflow Pipelines API server; each error is one line.

They use kfp_server_api, the generated client below kfp.Client. kfp.Client itself repeats a refused call five times with
stack traces and without a timeout, stores a namespace in the user's home folder, and prints while it works.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api as api
import urllib3
from kfp_server_api.exceptions import ApiException

from model.boundary.errors import MoonflowError

TIMEOUT_S = (10, 60)  # to connect, to answer
PAGE = 100
SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""Where Kubernetes projects a token for KFP into a pod; KF_PIPELINES_SA_TOKEN_PATH names another file, as for kfp."""

Answer = TypeVar("Answer")


class Conflict(MoonflowError):
    """The server already has something of that name."""


class NotFound(MoonflowError):
    """The server does not know what was asked for."""


class KfpServer:
    """One API server. Every method raises a MoonflowError of one line that names the server and says what to do."""

    def __init__(self, host: str, *, token: str = "", ca_cert: str = "", ui: str = "") -> None:
        """``host`` is the API's address, ``http(s)://...``, and ``ui`` that of the UI in a browser, if it differs."""
        if not host.startswith(("http://", "https://")):
            raise MoonflowError(
                f"--host {host}: write the whole address, for example https://kubeflow.example.org/pipeline"
            )
        self.host = host.rstrip("/")
        self.ui = (ui or host).rstrip("/")
        configuration = api.Configuration()
        configuration.host = self.host
        configuration.ssl_ca_cert = _readable(ca_cert) or None
        # A redirect leads to a login page, which must not be read as an answer. POST is never repeated.
        configuration.retries = urllib3.Retry(
            total=3, read=0, redirect=0, raise_on_redirect=False,
            status_forcelist=(429, 502, 503, 504), backoff_factor=0.5, raise_on_status=False,
        )  # fmt: skip
        if token or (token := _projected_token()):
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
        self._client = api.ApiClient(configuration)
        self._health = api.HealthzServiceApi(self._client)
        self._pipelines = api.PipelineServiceApi(self._client)
        self._uploads = api.PipelineUploadServiceApi(self._client)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._runs = api.RunServiceApi(self._client)
        self._recurring = api.RecurringRunServiceApi(self._client)

    def multi_user(self) -> bool:
        """Whether pipelines, experiments and runs belong to namespaces. Called first, to find out whether it is KFP."""
        return bool(self._call("its health", self._health.healthz_service_get_healthz).multi_user)

    def pipeline(self, name: str, namespace: str) -> Any:
        """The pipeline of that name, created if it does not exist."""
        ask = self._pipelines.pipeline_service_get_pipeline_by_name
        given = {"namespace": namespace} if namespace else {}
        try:
            return self._call(f"pipeline {name}", ask, name, **given)
        except NotFound:
            body = api.V2beta1Pipeline(name=name, display_name=name, namespace=namespace or None)
        try:
            return self._call(f"a new pipeline {name}", self._pipelines.pipeline_service_create_pipeline, body)
        except Conflict:  # another submission was faster
            return self._call(f"pipeline {name}", ask, name, **given)

    def version(self, pipeline_id: str, name: str) -> Any | None:
        """The version of that name with its content, or None."""
        ask = self._pipelines.pipeline_service_list_pipeline_versions
        found = self._pages(f"version {name}", ask, "pipeline_versions", pipeline_id, filter=_equals("name", name))
        return next((version for version in found if (version.name or version.display_name) == name), None)

    def upload_version(self, pipeline_id: str, package: Path, name: str, shown: str, description: str) -> Any:
        """Upload compiled IR YAML as a new version. Conflict if the name is taken."""
        options = {"name": name, "display_name": shown, "description": description, "pipelineid": pipeline_id}
        return self._call(f"version {name}", self._uploads.upload_pipeline_version, str(package), **options)

    def experiment(self, name: str, namespace: str) -> str:
        """The id of the experiment of that name, created if it does not exist."""
        given = {"namespace": namespace} if namespace else {}
        ask = self._experiments.experiment_service_list_experiments
        query = _equals("display_name", name)
        for found in self._pages("experiments", ask, "experiments", filter=query, **given):
            if found.display_name == name:
                return found.experiment_id
        body = api.V2beta1Experiment(display_name=name, namespace=namespace or None)
        made = self._call(f"experiment {name}", self._experiments.experiment_service_create_experiment, body)
        return made.experiment_id

    def start(self, name: str, experiment_id: str, version: Any, arguments: Mapping[str, Any], account: str) -> str:
        """Start a run and return its id."""
        body = api.V2beta1Run(display_name=name, **_what(experiment_id, version, arguments, account))
        return self._call("a new run", self._runs.run_service_create_run, body).run_id

    def schedule(
        self, name: str, experiment_id: str, version: Any, arguments: Mapping[str, Any], account: str, cron: str
    ) -> tuple[str, bool]:
        """Schedule ``version`` by ``cron`` under ``name``; returns (id, whether that schedule existed).

        Other schedules of that name in the experiment are replaced. The new one is created first, so that there is
        always one.
        """
        ask = self._recurring.recurring_run_service_list_recurring_runs
        query = {"experiment_id": experiment_id, "filter": _equals("display_name", name)}
        there = [r for r in self._pages("recurring runs", ask, "recurring_runs", **query) if r.display_name == name]
        same = [
            run for run in there if _scheduled(run) == (version.pipeline_version_id, dict(arguments), account, cron)
        ]
        if same:
            kept = same[0].recurring_run_id
        else:
            body = api.V2beta1RecurringRun(
                display_name=name,
                trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
                mode=api.RecurringRunMode.ENABLE,
                max_concurrency="1",
                no_catchup=True,  # one run after missed times, not one for each of them
                **_what(experiment_id, version, arguments, account),
            )
            make = self._recurring.recurring_run_service_create_recurring_run
            kept = self._call("a recurring run", make, body).recurring_run_id
        for run in there:
            if run.recurring_run_id != kept:
                delete = self._recurring.recurring_run_service_delete_recurring_run
                self._call(f"recurring run {run.recurring_run_id}", delete, run.recurring_run_id)
        return kept, bool(same)

    def _pages(self, what: str, ask: Callable[..., Any], field: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(what, ask, *arguments, page_size=PAGE, page_token=token, **options)
            yield from getattr(page, field) or ()
            token = page.next_page_token
            if not token:
                return

    def _call(self, what: str, function: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        try:
            answer = function(*arguments, _request_timeout=TIMEOUT_S, **options)
        except ApiException as error:
            raise self._explained(what, error) from None
        except urllib3.exceptions.HTTPError as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())
            checked = "--ca-cert" if "CERTIFICATE_VERIFY_FAILED" in reason else "--host, and that the server is up"
            raise MoonflowError(f"cannot reach {self.host} ({reason}): check {checked}") from None
        except (AttributeError, TypeError, ValueError):
            answer = None  # an answer without the fields of KFP's
        # The generated client turns a login page into an empty object.
        if answer is None or "json" not in self._client.last_response.getheader("content-type", ""):
            raise MoonflowError(
                f"{self.host} gave no KFP answer when asked for {what} (a login page?): check --host and --token"
            )
        return answer

    def _explained(self, what: str, error: ApiException) -> MoonflowError:
        said = _message(error.body)
        why = f" ({said})" if said else ""
        status = error.status
        if status == 401 or 300 <= status < 400:
            return MoonflowError(f"{self.host} asks for a login ({status}): give --token or set KF_PIPELINES_TOKEN")
        if status == 403:
            return MoonflowError(f"{self.host} does not allow {what}{why}: ask for the right, or check --namespace")
        if status == 404:
            return NotFound(f"{self.host} does not know {what}{why}: check --host, which must serve KFP's v2beta1 API")
        if status == 409:
            return Conflict(f"{self.host} already has {what}{why}")
        return MoonflowError(f"{self.host} refused {what} with status {status}{why}")


def _what(experiment_id: str, version: Any, arguments: Mapping[str, Any], account: str) -> dict[str, Any]:
    """The fields that a run and a recurring run share."""
    return {
        "experiment_id": experiment_id,
        "pipeline_version_reference": api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        ),
        "runtime_config": api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        "service_account": account or None,
    }


def _scheduled(run: Any) -> tuple[str, dict[str, Any], str, str]:
    """(version, arguments, service account, cron) of an enabled recurring run."""
    reference, schedule = run.pipeline_version_reference, run.trigger and run.trigger.cron_schedule
    arguments = (run.runtime_config and run.runtime_config.parameters) or {}
    enabled = str(run.mode) == api.RecurringRunMode.ENABLE
    cron = schedule.cron if schedule and enabled else ""
    return reference.pipeline_version_id if reference else "", arguments, run.service_account or "", cron


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _message(body: str | None) -> str:
    """The server's message in one line; KFP's JSON has it under one of several names."""
    text = body or ""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict):
        text = str(next((values[key] for key in ("error_message", "message", "error") if values.get(key)), ""))
    elif text.lstrip().startswith("<"):
        return ""  # a proxy's page
    return " ".join(text.split())[:300]


def _projected_token() -> str:
    named = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "")
    path = Path(named or SERVICE_ACCOUNT_TOKEN)
    if not named and not path.is_file():
        return ""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise MoonflowError(f"KF_PIPELINES_SA_TOKEN_PATH={named}: {error.strerror}; name the token's file") from None


def _readable(path: str) -> str:
    if path and not Path(path).is_file():
        raise MoonflowError(f"--ca-cert {path} does not exist: name a PEM file of certificates")
    return path
