"""``moonflow submit``: the pipeline as a version on a Kubeflow Pipelines server, and a run or a schedule of it.

A version is immutable: the same content under the same name is used again, other content is refused. Step parameters
(``--set joint_pretrain.steps=10``) are the run's arguments and leave the version as it is; ``run.*`` and ``task.*``
change what is compiled, and so the version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.runtime.step import check_run_id, git_commit
from model.errors import MoonflowError
from pipelines.compile import compile_ir, pipeline_name, version_name
from pipelines.dag import pipeline_parameters
from pipelines.kubeflow import Conflict, Server
from pipelines.profile import Profile, load_profile

RUN_ID = "p00_run_id"


@dataclass(frozen=True)
class Submission:
    """What to submit. Empty texts take the defaults said in ``moonflow submit --help``."""

    profile: Profile
    arguments: dict[str, Any]
    version: str
    namespace: str = ""
    experiment: str = "moonflow"
    name: str = ""
    cron: str = ""
    account: str = ""
    upload_only: bool = False

    @property
    def pipeline(self) -> str:
        return pipeline_name(self.profile)

    @property
    def unseen(self) -> str:
        """What the run needs and only the cluster's network and Secrets lead to."""
        unseen = ["prepare_data's sources"]
        if "promote" in self.profile.steps:
            overlay = self.profile.step("promote").model_dump()["environment"]
            unseen += [f"the GitOps repository with its overlay {overlay}", "the registry's champion"]
        return ", ".join(unseen)

    @classmethod
    def resolve(
        cls, profile: str, overrides: Sequence[str], version: str, run_id: str = "", **options: Any
    ) -> Submission:
        """Part ``overrides`` into what is compiled and what is the run's own.

        Raises MoonflowError for a wrong key or value, for options that contradict each other, and for a profile that
        its tasks would refuse.
        """
        wanted = load_profile(profile, overrides)
        base = load_profile(profile, [each for each in overrides if each.lstrip().startswith(("run.", "task."))])
        defaults = {parameter.name: parameter.default for parameter in pipeline_parameters(base)}
        given = {parameter.name: parameter.default for parameter in pipeline_parameters(wanted)}
        arguments = {name: value for name, value in given.items() if value != defaults[name]}
        if run_id:
            check_run_id(run_id, "--run-id")
            arguments[RUN_ID] = run_id
        made = cls(base, arguments, version, **options)
        made._check()
        return made

    def _check(self) -> None:
        self.profile.require_parallel()
        version_name(self.profile, self.version)
        if self.cron and not (self.cron.startswith("@") or len(self.cron.split()) == 6):
            raise MoonflowError(
                f"--recurring {self.cron!r}: Kubeflow's cron has six fields, seconds first, such as '0 0 3 * * 1' for "
                "Mondays at three, or @daily"
            )
        if self.cron and RUN_ID in self.arguments:
            raise MoonflowError(
                "--recurring with --run-id: every scheduled run would go on with the same one; leave one out"
            )
        if self.upload_only and (self.cron or self.arguments):
            what = "--recurring" if self.cron else ", ".join(sorted(self.arguments))
            raise MoonflowError(f"--upload-only starts nothing, so {what} would be lost: leave one of them out")

    def describe(self, host: str) -> str:
        """What ``submit`` would do, in one line."""
        done = f"upload {self.pipeline} version {self.version} to {host}"
        if self.upload_only:
            return done
        then = f"let it run by cron {self.cron!r}" if self.cron else "start a run"
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{done} and {then} in experiment {self.experiment} with {given or 'the defaults'}"


def submit(submission: Submission, server: Server) -> None:
    """Upload the version unless it is there, start what was asked for, and print where to look."""
    _check_namespace(submission, server)
    version, uploaded = _version(submission, server)
    state = "uploaded" if uploaded else "already there with the same content"
    page = f"{server.ui}/#/pipelines/details/{version.pipeline_id}/version/{version.pipeline_version_id}"
    print(f"pipeline   {submission.pipeline} {submission.version}, {state}: {page}")
    if not submission.upload_only:
        _start(submission, server, version)
    if retries := submission.profile.run.retries:
        print(f"retries    {retries} a step: `moonflow doctor --cluster` says what this server's setting makes of them")


def _start(submission: Submission, server: Server, version: Any) -> None:
    """Start the run, or set the schedule, that was asked for."""
    print(f"not seen   from here: {submission.unseen}; the steps that use them check them")
    experiment = server.experiment(submission.experiment, submission.namespace)
    what = (experiment, version, submission.arguments, submission.account)
    if submission.cron:
        made, same = server.schedule(submission.name or submission.pipeline, *what, submission.cron)
        print(f"schedule   {'as it was' if same else 'set'}: {server.ui}/#/recurringrun/details/{made}")
    else:
        made = server.start(submission.name or f"{submission.pipeline} {submission.version}", *what)
        print(f"run        started: {server.ui}/#/runs/details/{made}")


def _check_namespace(submission: Submission, server: Server) -> None:
    many = server.multi_user()
    if many and not submission.namespace:
        raise MoonflowError(
            f"{server.host} serves many users: name the namespace of your profile that manifests/ are installed in, "
            "--namespace moonflow unless your overlay says otherwise"
        )
    if submission.namespace and not many:
        raise MoonflowError(
            f"{server.host} serves one user, whose runs all land in its own namespace, and manifests/ install no "
            "accounts, settings and queues there: use a server for many users, or install them there and leave "
            "--namespace out"
        )


def _version(submission: Submission, server: Server) -> tuple[Any, bool]:
    """The version on the server and whether this call uploaded it."""
    name = version_name(submission.profile, submission.version)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_ir(submission.profile, package)
        spec, platform = yaml.safe_load_all(package.read_text())
        pipeline_id = server.pipeline(submission.pipeline, submission.namespace).pipeline_id
        there = server.version(pipeline_id, name)
        if there is None:
            commit = git_commit()
            description = f"profile {submission.profile.run.name}" + (f", git commit {commit}" if commit else "")
            try:
                return server.upload_version(pipeline_id, package, name, submission.version, description), True
            except Conflict:  # another submission was faster
                there = server.version(pipeline_id, name)
    # Compared as values: the server keeps the documents under these names, with its own order and number format.
    if there is None or there.pipeline_spec != {"pipeline_spec": spec, "platform_spec": platform}:
        raise MoonflowError(
            f"{server.host} has {submission.pipeline} {submission.version} with other content, and versions are "
            "immutable: give a new --version"
        )
    return there, False
