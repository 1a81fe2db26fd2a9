"""Commands about data, memory and machines: plan, data check, doctor, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.commands.options import DryRunOption


def plan(
    preset: Annotated[str, typer.Option(help="The model's shape: tiny, small or k25.")] = "k25",
    gpus: Annotated[int, typer.Option("--gpus", "-g", help="GPUs of one training step.")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="Memory of one GPU, GiB.")] = 80.0,
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(help="Sequences that a data-parallel rank computes in a step.")] = 1,
    vision_share: Annotated[float, typer.Option(help="Share of the tokens that images take.")] = 0.1,
    image_patches: Annotated[int, typer.Option(help="Patches of an image; 448 x 448 pixels have 1024.")] = 1024,
    zero: Annotated[int, typer.Option(help="Only layouts of this ZeRO stage, 1 to 3. Default: all.")] = 0,
    expert_parallel: Annotated[
        int, typer.Option(help="Only layouts in which this many ranks share the experts. Default: all.")
    ] = 0,
    sequence_parallel: Annotated[
        int, typer.Option(help="Only layouts in which this many ranks share a sequence. Default: all.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Work out what a shape costs to train: parameters, FLOPs, memory and traffic, and which layouts fit.

    Each figure comes with its formula and the formula's source.
    """
    from model.plan.layout import LayoutConstraints, Workload
    from pipelines.plan import Plan

    work = Workload(sequence, batch, vision_share, image_patches)
    planned = Plan.of(preset, gpus, work, gpu_memory, LayoutConstraints(zero, expert_parallel, sequence_parallel))
    if as_json:
        print(planned.as_json())
    else:
        planned.show(Console())


def check(
    uri: Annotated[
        str,
        typer.Argument(
            help="A folder or s3://... of shards or of prepare_data's output; a folder of images with texts; a .jsonl "
            "file of conversations, or a folder of them."
        ),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use the tokenizer of this data or checkpoint folder. Default: the data's own.")
    ] = None,
    row: Annotated[
        int, typer.Option(min=0, help="Tokens of a row: longer samples are problems. Default: no bound.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all problems.")] = False,
) -> None:
    """Show samples, tokens by modality and problems of a data set; exit with status 1 if there is a problem."""
    from pipelines.data_check import examine

    found = examine(uri, tokenizer, row)
    if as_json:
        print(found.as_json())
    else:
        found.show(uri, Console())
    if found.problems:
        raise typer.Exit(1)


def doctor(
    run_dir: Annotated[Path, typer.Option("--run-dir", "-d", help="Where runs will be written.")] = Path("runs"),
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Check the cluster of the kubeconfig instead. Changes nothing.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="With --cluster: the namespace of pipeline runs.")] = "moonflow",
) -> None:
    """Check that this machine, or a cluster, has what a run needs, and say how to fix what is missing.

    If MOONFLOW_STORE is set to s3://bucket/prefix, that object store is checked too. The status is 1 if something
    that a run needs is missing.
    """
    if cluster:
        from pipelines.doctor_cluster import examine_cluster

        well = examine_cluster(namespace, Console())
    else:
        from pipelines.doctor import examine

        well = examine(run_dir, Console())
    if not well:
        raise typer.Exit(1)


def clean(
    runs: Annotated[Path, typer.Argument(help="A run's folder, or the folder that holds runs.")] = Path("runs"),
    dry_run: DryRunOption = False,
) -> None:
    """Stop the services that `moonflow run --keep` left running. Deletes nothing."""
    from pipelines.services import stop_kept

    told = False
    for folder in (runs, *sorted(path for path in runs.glob("*") if path.is_dir())):
        if dry_run and (folder / "services.json").is_file():
            print(f"would stop the services of {folder}, if they are running and were kept")
            told = True
        elif not dry_run and stop_kept(folder):
            print(f"stopped the services of {folder}")
            told = True
    if not told:
        print(f"nothing to stop: no services of {runs}, or of a run in it, were left running")
