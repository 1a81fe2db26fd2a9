"""Commands that run the pipeline: run, seeds, compile, submit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.boundary.errors import MoonflowError
from pipelines.commands.options import DryRunOption, ProfileOption, RunDirOption, SetOption

if TYPE_CHECKING:
    from pipelines.profile import Profile


def run(
    profile: ProfileOption = "tiny",
    run_dir: RunDirOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the object store and MLflow running afterwards.")] = False,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Run the whole pipeline on this machine, or continue a run that was stopped.

    Steps that are finished in the run's folder are not run again.
    Ctrl-C stops everything; the next call continues from the last checkpoint.
    """
    from pipelines.profile import load_profile

    resolved = load_profile(profile, set_ or ())
    folder = run_dir or Path("runs") / resolved.run.name
    if dry_run:
        print(resolved.as_toml(), end="")
        _warn_of_inputs(resolved, folder)
        return
    from pipelines.run import run_locally

    run_locally(resolved, folder, keep=keep, console=Console())


def _warn_of_inputs(profile: Profile, folder: Path) -> None:
    """Say on stderr if a run would refuse what it is to start from; one that has begun may need it no more."""
    from pipelines.preflight import check_inputs
    from pipelines.run_folder import is_run_folder

    try:
        if not is_run_folder(folder):
            check_inputs(profile)
    except MoonflowError as error:
        print(f"moonflow: warning: this run cannot start as it is: {error}", file=sys.stderr)


def seeds(
    profile: ProfileOption = "tiny",
    count: Annotated[
        int | None,
        typer.Option("--seeds", min=1, max=1000, help="Number of runs. Default: those that the folder has, else 3."),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(min=0, max=1_000_000, help="Number of the first run; 0 has the profile's own seeds. Default: 1."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", "-d", help="The folder of all runs. Default: runs/seeds-<profile name>."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the object store and MLflow running afterwards.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the result so far and run nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object too, the last line.")
    ] = False,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the seeds of every run and stop.")] = False,
) -> None:
    """Run a profile several times with other seeds in every step, or go on with that, and show mean, spread and worst.

    Run number i has the profile's seeds plus 1000 * i; the held-out tasks stay the same.
    A failed run is counted, and the next one begins; the next call goes on with it. Finished runs are not run again.
    The status is 1 if no run has scores.
    """
    from pipelines.profile import load_profile
    from pipelines.seeds.command import default_folder, print_plan, run_seeds
    from pipelines.seeds.results import together
    from pipelines.seeds.table import show as print_table

    resolved = load_profile(profile, set_ or ())
    folder = run_dir or default_folder(resolved)
    if dry_run:
        print_plan(resolved, folder, count, first)
        return
    if show:
        found = together(folder)
        print_table(found, Console())
    else:
        found = run_seeds(resolved, folder, count, first, keep=keep, console=Console())
    if as_json:
        print(json.dumps(found))
    if not found["suites"]:
        raise typer.Exit(1)


def compile_(
    profile: ProfileOption = "tiny",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("pipeline.yaml"),
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write Pipeline and PipelineVersion objects instead of IR YAML.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the Kubernetes objects.")] = "moonflow",
    version: Annotated[
        str | None, typer.Option(help="The PipelineVersion's name; immutable. Default: moonflow's version.")
    ] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Compile the pipeline for Kubeflow: IR YAML to upload, or objects for kubectl and Argo CD."""
    from importlib.metadata import version as installed

    from pipelines.compile import check_namespace, check_output, compile_ir, compile_kubernetes, version_name
    from pipelines.profile import load_profile

    check_output(output)
    resolved = load_profile(profile, set_ or ())
    version = version or installed("moonflow")
    if kubernetes:
        check_namespace(namespace)
        version_name(resolved, version)
    try:
        resolved.require_parallel()
    except MoonflowError as error:  # it still compiles, and Kubeflow shows the placements
        print(f"moonflow: warning: this pipeline cannot run as it is: {error}", file=sys.stderr)
    for line in resolved.programs_beside_a_token:
        print(f"moonflow: warning: {line}", file=sys.stderr)
    kind = "Pipeline and PipelineVersion objects" if kubernetes else "IR YAML"
    if dry_run:
        print(f"would write {kind} of profile {resolved.run.name} to {output}")
        return
    try:
        if kubernetes:
            compile_kubernetes(resolved, output, namespace, version)
        else:
            compile_ir(resolved, output)
    except OSError as error:
        raise MoonflowError(f"cannot write {output}: {error.strerror}; give another --output") from error
    print(f"wrote {kind} of profile {resolved.run.name} to {output}")


def submit(
    profile: ProfileOption = "small",
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of the KFP API server, http(s)://...")
    ] = "",
    token: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token. Default in a pod: its projected token.")
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="The namespace in which manifests/ are installed.")
    ] = "",
    experiment: Annotated[str, typer.Option(help="Experiment of the run; created if it does not exist.")] = "moonflow",
    version: Annotated[
        str | None, typer.Option(help="The pipeline version's name; immutable. Default: moonflow's version.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run or the schedule. Default: the pipeline's.")] = "",
    run_id: Annotated[str, typer.Option(help="Continue this earlier run from its finished steps.")] = "",
    recurring: Annotated[
        str, typer.Option(metavar="CRON", help="Start runs by a schedule: six fields, seconds first, or @daily.")
    ] = "",
    service_account: Annotated[str, typer.Option(help="ServiceAccount of the steps.")] = "moonflow-step",
    upload_only: Annotated[bool, typer.Option("--upload-only", help="Upload the version and start nothing.")] = False,
    ca_cert: Annotated[str, typer.Option(help="PEM file of the server's certificate authority.")] = "",
    ui: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="Address of the UI, if it is not the API's.")
    ] = "",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Upload the pipeline to Kubeflow Pipelines as a version, and start a run or a schedule of it.

    A version that exists with the same content is used again; with other content it is refused. --set with a step's
    parameter changes only this run; with run.* or task.* it changes the version.
    """
    from importlib.metadata import version as installed

    from pipelines.kubeflow import KfpServer
    from pipelines.submit import Submission
    from pipelines.submit import submit as send

    submission = Submission.resolve(
        profile,
        set_ or (),
        version or installed("moonflow"),
        run_id,
        namespace=namespace,
        experiment=experiment,
        name=name,
        cron=recurring,
        account=service_account,
        upload_only=upload_only,
    )
    if not host:
        raise MoonflowError("which server? give --host or set KF_PIPELINES_ENDPOINT")
    server = KfpServer(host, token=token, ca_cert=ca_cert, ui=ui)
    if dry_run:
        print(f"would {submission.describe(server.host)}")
        return
    send(submission, server)
