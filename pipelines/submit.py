"""``moonflow submit``: upload the pipeline as a version to a Kubeflow Pipelines server, and start or schedule a run.

A version is immutable: one that exists with the same content is used again, one with other content is refused. A step's
parameter (``--set joint_pretrain.steps=10``) is an argument of the run and leaves the version as it is; ``run.*`` and
``task.*`` change what is compiled, and so the version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.import_checkpoint.config import HUB
from components.runtime.step import check_run_id, git_commit
from components.runtime.steps import IMPORTED
from components.runtime.store.address import S3
from model.boundary.errors import MoonflowError
from pipelines.compile import compile_ir, pipeline_name, version_name
from pipelines.dag import pipeline_parameters
from pipelines.kubeflow import Conflict, KfpServer
from pipelines.preflight import own_tasks
from pipelines.profile import Profile, load_profile
from pipelines.source_run import source_of

RUN_ID = "p00_run_id"
OWN_TASKS = ("visual_rl_tasks", "joint_rl_tasks", "parl_tasks", "evaluate_tasks")


@dataclass(frozen=True)
class Submission:
    """What to submit. An empty text stands for the default that ``moonflow submit --help`` names."""

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
        """What the run needs and only the cluster can check, through its network and Secrets."""
        unseen = ["import_checkpoint's source"] if IMPORTED in self.profile.steps else []
        unseen.append("prepare_data's sources")
        if own_tasks(self.profile) or any(name.endswith(OWN_TASKS) for name in self.arguments):
            unseen.append("the package of your tasks, which must be in the images")
        if "promote" in self.profile.steps:
            overlay = self.profile.step("promote").model_dump()["environment"]
            unseen += [f"the GitOps repository with its overlay {overlay}", "the registry's champion"]
        return ", ".join(unseen)

    @classmethod
    def resolve(
        cls, profile: str, overrides: Sequence[str], version: str, run_id: str = "", **options: Any
    ) -> Submission:
        """Split ``overrides`` into what is compiled and what are arguments of the run.

        Raises MoonflowError for a wrong key or value, for options that contradict each other, and for a profile that
        its tasks would refuse or whose model-written programs would run beside a Kubernetes token.
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
        if IMPORTED in wanted.steps and not made.upload_only:
            _check_source(wanted)
        return made

    def _check(self) -> None:
        self.profile.require_parallel()
        if told := self.profile.programs_beside_a_token:
            raise MoonflowError("\n".join(told))
        version_name(self.profile, self.version)
        if self.cron and not (self.cron.startswith("@") or len(self.cron.split()) == 6):
            raise MoonflowError(
                f"--recurring {self.cron!r}: Kubeflow's cron has six fields, seconds first, such as '0 0 3 * * 1' for "
                "Mondays at three, or @daily"
            )
        if self.cron and RUN_ID in self.arguments:
            raise MoonflowError(
                "--recurring with --run-id: every scheduled run would continue the same one; leave one out"
            )
        if self.upload_only and (self.cron or self.arguments):
            what = "--recurring" if self.cron else ", ".join(sorted(self.arguments))
            raise MoonflowError(f"--upload-only starts nothing, so {what} would be lost: leave one of them out")

    def describe(self, host: str) -> str:
        """What ``submit`` would do, in one line."""
        done = f"upload {self.pipeline} version {self.version} to {host}"
        if self.upload_only:
            return done
        then = f"schedule runs by cron {self.cron!r}" if self.cron else "start a run"
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{done} and {then} in experiment {self.experiment} with {given or 'the defaults'}"


def _check_source(profile: Profile) -> None:
    """MoonflowError unless the checkpoint to start from is where a cluster can read it."""
    source = source_of(profile)
    if not source.startswith((S3, HUB)):
        raise MoonflowError(
            f"import_checkpoint.source is {source!r}: a cluster reads s3:// and hf:// addresses only; upload the "
            "checkpoint to your bucket and add --set import_checkpoint.source=s3://BUCKET/PREFIX"
        )


def submit(submission: Submission, server: KfpServer) -> None:
    """Upload the version unless it exists, start or schedule the run, and print the pages that show them."""
    _check_namespace(submission, server)
    version, uploaded = _version(submission, server)
    state = "uploaded" if uploaded else "already there with the same content"
    page = f"{server.ui}/#/pipelines/details/{version.pipeline_id}/version/{version.pipeline_version_id}"
    print(f"pipeline   {submission.pipeline} {submission.version}, {state}: {page}")
    if not submission.upload_only:
        _start(submission, server, version)
    if retries := submission.profile.run.retries:
        print(f"retries    {retries} a step: `moonflow doctor --cluster` says what this server repeats")


def _start(submission: Submission, server: KfpServer, version: Any) -> None:
    """Start the run or set the schedule."""
    print(f"not seen   from here: {submission.unseen}; the steps that use them check them")
    experiment = server.experiment(submission.experiment, submission.namespace)
    what = (experiment, version, submission.arguments, submission.account)
    if submission.cron:
        made, same = server.schedule(submission.name or submission.pipeline, *what, submission.cron)
        print(f"schedule   {'as it was' if same else 'set'}: {server.ui}/#/recurringrun/details/{made}")
    else:
        made = server.start(submission.name or f"{submission.pipeline} {submission.version}", *what)
        print(f"run        started: {server.ui}/#/runs/details/{made}")


def _check_namespace(submission: Submission, server: KfpServer) -> None:
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


def _version(submission: Submission, server: KfpServer) -> tuple[Any, bool]:
    """The version on the server, and whether this call uploaded it."""
    name = version_name(submission.profile, submission.version)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_ir(submission.profile, package)
        spec, platform = yaml.load_all(package.read_text(), Loader=yaml.CSafeLoader)
        pipeline_id = server.pipeline(submission.pipeline, submission.namespace).pipeline_id
        there = server.version(pipeline_id, name)
        if there is None:
            commit = git_commit()
            description = f"profile {submission.profile.run.name}" + (f", git commit {commit}" if commit else "")
            try:
                return server.upload_version(pipeline_id, package, name, submission.version, description), True
            except Conflict:  # another submission was faster
                there = server.version(pipeline_id, name)
    # Compare values, not texts: the server keeps both documents under these names, in its own order and number format.
    if there is None or there.pipeline_spec != {"pipeline_spec": spec, "platform_spec": platform}:
        raise MoonflowError(
            f"{server.host} has {submission.pipeline} {submission.version} with other content, and versions are "
            "immutable: give a new --version"
        )
    return there, False
