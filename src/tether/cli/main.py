"""``tether``: one verb a command; each parses, calls one library function, prints."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from typing import Any

import typer
from rich.console import Console

from tether import __version__
from tether.errors import TetherError
from tether.workers import n_ranks

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Adapt pretrained 3D atomistic models without letting them forget their physics.",
)

#: Exit code after Ctrl-C, as shells have it.
_INTERRUPTED = 130
#: click's base of all usage errors; recent typer carries a click of its own, older ones import it.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

#: Verb → what `tether --help` says. Each lives in ``tether/cli/<verb>.py``; the heavy imports
#: happen inside the commands, so that help and errors come at once.
VERBS = (
    "prepare", "split", "label", "pretrain", "adapt", "compare", "bench", "predict", "collapse",
    "report", "list", "doctor",
)  # fmt: skip
#: Those that several processes may run together.
SHARED_VERBS = ("pretrain", "adapt")
#: Those that go on where they were when the same command is given again.
RESUMED_VERBS = ("label", "pretrain", "adapt", "compare", "bench", "collapse")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"tether {__version__}")
        raise typer.Exit
    if n_ranks() > 1 and context.invoked_subcommand not in SHARED_VERBS:
        raise TetherError(
            f"`tether {context.invoked_subcommand}` as {n_ranks()} processes of torchrun or srun",
            expected=f"one process; those that run as several are: {', '.join(SHARED_VERBS)}",
            fix="start it without torchrun and srun: it uses the cores by itself",
        )


for _verb in VERBS:
    _module = import_module(f"tether.cli.{_verb}")
    app.command(_verb)(getattr(_module, f"{_verb}_command"))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exit code 0: done; 2: bad input, said in one line; 130: interrupted; 1: a defect, with its
    traceback.

    Parameters
    ----------
    arguments : list of str, optional
        Default: ``sys.argv``.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given, standalone_mode=False, prog_name="tether")
    except TetherError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail_usage(error, given)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    # Without standalone mode, an exit code that a command asks for comes back as a value; typer
    # makes one of Ctrl-C, too.
    if code == _INTERRUPTED:
        resumes = bool(given) and given[0] in RESUMED_VERBS
        _say("interrupted" + ("; the same command goes on where it was" if resumes else ""))
    if isinstance(code, int) and code:
        sys.exit(code)


def _fail_usage(error: Any, arguments: list[str]) -> None:
    path = error.ctx.command_path if error.ctx else "tether"
    problem = error.format_message().rstrip(".")
    if not problem:  # bare `tether`: the help has been printed
        sys.exit(2)
    # click does not always say the value that it refuses; the command line has it.
    given = shlex.join(["tether", *arguments])
    _fail(f"{problem} in `{given}`; expected a command line as in `{path} --help`; fix: correct it")


def _fail(message: str) -> None:
    _say(f"error: {message}")
    sys.exit(2)


def _say(message: str) -> None:
    # One line however narrow the terminal is, and as it stands: scripts read it.
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(" ".join(message.split()), markup=False)
