"""The moonflow command."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.errors import MoonflowError

# What makes a path unusable that was given to us; any other OSError is a bug and keeps its traceback.
_UNUSABLE = frozenset((
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOSPC,
    errno.EDQUOT,
))  # fmt: skip

app = typer.Typer(
    name="moonflow",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate, promote and serve a multimodal agent-swarm model by the Kimi K2.5 recipe.",
    epilog="Begin with: moonflow doctor, then moonflow run.",
)

ProfileOption = Annotated[
    str, typer.Option("--profile", "-p", help="A profile's name (tiny, smoke, small, k25) or the path of a .toml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one value, for example joint_pretrain.steps=200; --dry-run of run lists all. May be repeated.",
        metavar="STEP.KEY=VALUE",
    ),
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", "-d", help="The run's folder. Default: runs/<profile name>.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and do nothing.")]


@app.command()
def run(
    profile: ProfileOption = "tiny",
    run_dir: RunDirOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the object store and MLflow running afterwards.")] = False,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Run the whole pipeline on this machine, or go on with a run that was stopped.

    Steps that are finished in the run's folder are not done again.
    Ctrl-C stops everything; the next call goes on from the last checkpoint.
    """
    from pipelines.profile import load_profile

    resolved = load_profile(profile, set_ or ())
    if dry_run:
        print(resolved.as_toml(), end="")
        return
    from pipelines.run import run_locally

    run_locally(resolved, run_dir or Path("runs") / resolved.run.name, keep=keep, console=Console())


@app.command(name="compile")
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
    except MoonflowError as error:  # a statement of where steps belong can be written; it cannot be run
        print(f"moonflow: warning: not to be run as it is: {error}", file=sys.stderr)
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


@app.command()
def submit(
    profile: ProfileOption = "small",
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of the KFP API server, http(s)://...")
    ] = "",
    token: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token. In a pod: the projected token, if any.")
    ] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where manifests/ are installed: moonflow.")] = "",
    experiment: Annotated[str, typer.Option(help="Experiment of the run; made if it is not there.")] = "moonflow",
    version: Annotated[
        str | None, typer.Option(help="The pipeline version's name; immutable. Default: moonflow's version.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run or the schedule. Default: the pipeline's.")] = "",
    run_id: Annotated[str, typer.Option(help="Go on with this earlier run's steps and checkpoints.")] = "",
    recurring: Annotated[
        str, typer.Option(metavar="CRON", help="Run by schedule: six fields, seconds first, or @daily.")
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

    The same content under the same version is used again; other content is refused. Step parameters in --set are the
    run's; run.* and task.* change the version.
    """
    from importlib.metadata import version as installed

    from pipelines.kubeflow import Server
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
    server = Server(host, token=token, ca_cert=ca_cert, ui=ui)
    if dry_run:
        print(f"would {submission.describe(server.host)}")
        return
    send(submission, server)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, for example runs/tiny.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run's folder.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Render a run's HTML report again from its summary.json and events.json."""
    from pipelines.result import render_report

    target = output or run_dir / "report.html"
    if dry_run:
        print(f"would render {run_dir / 'summary.json'} and {run_dir / 'events.json'} to {target}")
        return
    render_report(run_dir, target)
    print(f"wrote {target}")


@app.command()
def promote(
    run_dir: Annotated[Path | None, typer.Argument(help="The run's folder, for example runs/tiny.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Revert the newest promotion and move the registry alias back.")
    ] = False,
    repository: Annotated[
        str,
        typer.Option(
            help="Instead of a run's folder: the GitOps repository's URL; MLFLOW_TRACKING_URI names MLflow, "
            "MOONFLOW_STORE the store."
        ),
    ] = "",
    environment: Annotated[str, typer.Option("--environment", "-e", help="Overlay. Default: the run's.")] = "",
    alias: Annotated[str, typer.Option(help="Registry alias. Default: the run's, else champion.")] = "",
    dry_run: DryRunOption = False,
) -> None:
    """Show what an environment serves and served before, or roll its newest promotion back.

    Promotions themselves are made by the pipeline's promote step.
    """
    from pipelines.promotion import roll_back, show, where

    place = where(run_dir, repository, environment, alias)
    if rollback:
        roll_back(place, dry_run=dry_run)
    else:
        show(place)


@app.command()
def serve(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, for example runs/tiny.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Serve a run's promoted checkpoint over an OpenAI-compatible API until Ctrl-C."""
    from pipelines.serving import serve_run

    serve_run(run_dir, port, dry_run=dry_run)


@app.command()
def plan(
    preset: Annotated[str, typer.Option(help="The model's shape: tiny, small or k25.")] = "k25",
    gpus: Annotated[int, typer.Option("--gpus", "-g", help="GPUs of one training step.")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="Memory of one GPU, GiB.")] = 80.0,
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(help="Sequences that a data-parallel rank computes in a step.")] = 1,
    vision_share: Annotated[float, typer.Option(help="Share of the tokens that images take.")] = 0.1,
    image_patches: Annotated[int, typer.Option(help="Patches of an image; 448 x 448 pixels have 1024.")] = 1024,
    zero: Annotated[int, typer.Option(help="Only this ZeRO stage, 1 to 3. Default: all.")] = 0,
    expert_parallel: Annotated[int, typer.Option(help="Only this many ranks to share the experts. Default: all.")] = 0,
    sequence_parallel: Annotated[int, typer.Option(help="Only this many ranks to share a sequence. Default: all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Work out what a shape costs to train: parameters, FLOPs, memory and traffic, and which layouts fit.

    Each figure comes with its formula and where that is from.
    """
    from model.plan.layout import Wanted, Work
    from pipelines.plan import Plan

    work = Work(sequence, batch, vision_share, image_patches)
    planned = Plan.of(preset, gpus, work, gpu_memory, Wanted(zero, expert_parallel, sequence_parallel))
    if as_json:
        print(planned.as_json())
    else:
        planned.show(Console())


data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(data_app, name="data")


@data_app.command()
def check(
    uri: Annotated[
        str, typer.Argument(help="A folder or s3://... of shards, of images with texts, or of prepare_data's output.")
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="A data or checkpoint folder whose tokenizer counts. Default: the data's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all problems.")] = False,
) -> None:
    """Show samples, tokens by modality and problems of data; status 1 if there is any problem."""
    from pipelines.data_check import examine

    found = examine(uri, tokenizer)
    if as_json:
        print(found.as_json())
    else:
        found.show(uri, Console())
    if found.problems:
        raise typer.Exit(1)


@app.command()
def doctor(
    run_dir: Annotated[Path, typer.Option("--run-dir", "-d", help="Where runs will be written.")] = Path("runs"),
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at the cluster of the kubeconfig instead; it is only read.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="With --cluster: the namespace of pipeline runs.")] = "moonflow",
) -> None:
    """Check that this machine can run the tiny profile, or a cluster any; say how to mend what is missing."""
    if cluster:
        from pipelines.doctor_cluster import examine_cluster

        well = examine_cluster(namespace, Console())
    else:
        from pipelines.doctor import examine

        well = examine(run_dir, Console())
    if not well:
        raise typer.Exit(1)


@app.command()
def clean(
    runs: Annotated[Path, typer.Argument(help="A run's folder, or the folder that holds runs.")] = Path("runs"),
    dry_run: DryRunOption = False,
) -> None:
    """Stop the services that `moonflow run --keep` left running. Deletes nothing."""
    from pipelines.services import stop_kept

    for folder in (runs, *sorted(path for path in runs.glob("*") if path.is_dir())):
        if dry_run and (folder / "services.json").is_file():
            print(f"would stop the services of {folder}, if they are running and were kept")
        elif not dry_run and stop_kept(folder):
            print(f"stopped the services of {folder}")


def main() -> None:
    """Entry point: a MoonflowError is one line on stderr and status 2; a signal's end is status 128 + its number.

    So is a path that the machine does not let us use.
    """
    try:
        app()
    except MoonflowError as error:
        print(f"moonflow: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _UNUSABLE or error.filename is None:
            raise
        print(f"moonflow: {str(error.filename)!r}: {error.strerror}: give another path, or mend it", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:  # typer makes 130 of a KeyboardInterrupt
            print("moonflow: stopped; the same command goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
