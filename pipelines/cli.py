"""The ``moonflow`` command: its commands in the order of its help, and how errors and signals end it."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable

import typer

from model.boundary.errors import MoonflowError
from pipelines.commands.checkpoints import evaluate, promote, report, serve
from pipelines.commands.checks import check, clean, doctor, plan
from pipelines.commands.options import Stopped
from pipelines.commands.runs import compile_, run, seeds, submit
from pipelines.commands.swarm import ask, show, video

# Reasons why a path that the user gave cannot be used; any other OSError is a bug and keeps its traceback.
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
    epilog="Start with: moonflow doctor, then moonflow run.",
)


def _add(group: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Make ``function`` a command whose help has a line per paragraph: Typer keeps line ends, a terminal then wraps."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    group.command(name, help="\n\n".join(" ".join(each.split()) for each in paragraphs))(function)


_add(app, run)
_add(app, seeds)
_add(app, compile_, "compile")
_add(app, submit)
_add(app, report)
_add(app, promote)
_add(app, serve)
_add(app, evaluate)
_add(app, plan)
data_app = typer.Typer(no_args_is_help=True, help="Check data before training on it.")
_add(data_app, check)
app.add_typer(data_app, name="data")
swarm_app = typer.Typer(no_args_is_help=True, help="Ask an agent swarm, let it watch videos, or look at its episodes.")
_add(swarm_app, ask)
_add(swarm_app, video)
_add(swarm_app, show)
app.add_typer(swarm_app, name="swarm")
_add(app, doctor)
_add(app, clean)


def main() -> None:
    """Run the command.

    A MoonflowError, or a path that cannot be used, ends it with what is wrong on stderr and status 2; a signal ends it
    with status 128 plus the signal's number.
    """
    try:
        app()
    except MoonflowError as error:
        for line in str(error).split("\n"):
            print(f"moonflow: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _UNUSABLE or error.filename is None:
            raise
        print(
            f"moonflow: {str(error.filename)!r}: {error.strerror}: give another path, or fix this one", file=sys.stderr
        )
        sys.exit(2)
    except Stopped:
        raise
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:  # typer makes 130 of a KeyboardInterrupt
            print("moonflow: stopped; the same command continues from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
