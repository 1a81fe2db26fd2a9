"""Commands about what a run made: report, promote, serve, evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import DryRunOption, Stopped


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
    environment: Annotated[
        str, typer.Option("--environment", "-e", help="The overlay to show or roll back. Default: the run's.")
    ] = "",
    alias: Annotated[
        str, typer.Option(help="The registry alias that follows. Default: the run's, else champion.")
    ] = "",
    dry_run: DryRunOption = False,
) -> None:
    """Show what an environment serves and served before, or roll its newest promotion back.

    Promotions themselves are made by the pipeline's promote step.
    """
    from pipelines.promotion import roll_back, show, target_of

    target = target_of(run_dir, repository, environment, alias)
    if rollback:
        roll_back(target, dry_run=dry_run)
    else:
        show(target)


def serve(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, for example runs/tiny.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Serve a run's promoted checkpoint over an OpenAI-compatible API until Ctrl-C."""
    from pipelines.serving import serve_run

    serve_run(run_dir, port, dry_run=dry_run)


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint's folder, a run's folder, one of its steps as in runs/tiny/mid_train, or the s3:// or "
            "file:// address of a manifest."
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Run only this suite, for example digit_string. May be repeated. Default: all."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="MODULE:NAME",
            help="A task of your own, a suite that is always run; --suite with its name leaves ours out. PYTHONPATH "
            "names the folder of its module. May be repeated.",
        ),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            help="Tasks of each suite, at least 2; suites with long episodes run a half or a quarter of them. Default: "
            "as in the run's evaluate step, else 64."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Ask the SGLang or OpenAI-compatible server that serves the checkpoint, instead of loading it. "
            "If it wants a key, set MOONFLOW_ENGINE_KEY to it.",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Score any checkpoint on the held-out tasks of the evaluate step; nothing is written to its store or to MLflow.

    A run's folder stands for its last finished training step; a step, for its newest checkpoint. Tasks come from the
    run's data; without a run, they are the first ones that the generators make. Each suite shows its correct answers,
    its score with a 95% interval, and chance, the score of the best constant answer. A suite that the model cannot
    hold is named and passed over. A server is asked what it is: SGLang gets token ids, any other chat completions with
    images and tools; one that refuses chat_template_kwargs is asked without, and thinks or not as it is set up. It
    also speaks for a swarm's sub-agents; video is passed over, and by a chat endpoint documents too. Prompts are read
    in the precision of training here, as in the step, but in a server's own precision there, so single answers can
    differ. Failed tasks are counted and named. Ctrl-C shows what is finished.
    """
    from pipelines.evaluation import evaluate as measure

    if not measure(checkpoint, suite or (), tasks, engine, own=task or (), as_json=as_json):
        print("moonflow: stopped before all suites were finished", file=sys.stderr)
        raise Stopped(130)
