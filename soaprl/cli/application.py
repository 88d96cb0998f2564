"""The `soaprl` command: its subcommands, and what it says and returns when something fails.

Exit codes: 0 done; 2 something the user can mend, said in one message; 1 our fault; 130 interrupted with
nothing to show. Subcommands import what is heavy (torch, Numba) inside their functions, so that listings and
mistakes answer at once.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn, TextIO

import typer

from soaprl import __version__
from soaprl.cli.clusters import clusters
from soaprl.cli.compare import compare
from soaprl.cli.demo import demo
from soaprl.cli.ensemble import ensemble
from soaprl.cli.evaluate import evaluate
from soaprl.cli.export import export
from soaprl.cli.methods import methods
from soaprl.cli.models import models
from soaprl.cli.output import INTERRUPTED
from soaprl.cli.profile import profile
from soaprl.cli.run import run as run_command
from soaprl.cli.search import search
from soaprl.cli.simulate import simulate
from soaprl.cli.train import train
from soaprl.cli.validate import validate
from soaprl.errors import SoaprlError

USER_ERROR = 2
OUR_FAULT = 1
TRACEBACK_VARIABLE = "SOAPRL_TRACEBACK"
_ENDING = b"soaprl: ending; Ctrl-C once more ends it at once, and what was found may be lost\n"

app = typer.Typer(
    name="soaprl",
    help="Find how to split every operator of a PyTorch model over a cluster, and where to run it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    models,
    clusters,
    methods,
    simulate,
    search,
    compare,
    train,
    ensemble,
    evaluate,
    profile,
    validate,
    export,
    demo,
)
for command in COMMANDS:
    app.command()(command)
app.command(name="run")(run_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"soaprl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand; `--version` ends the command in its callback."""


def run(arguments: Sequence[str], *, interrupts: Sequence[int] = ()) -> int:
    """Run the command line `arguments` and return its exit code.

    Args:
        arguments: The words after the program's name.
        interrupts: Grows when the user interrupts; an error after that is taken for its consequence.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(list(arguments), prog_name="soaprl", standalone_mode=False)
        except (SoaprlError, typer.TyperException) as error:
            return _report_user_error(error)
        except typer.Abort:
            code = INTERRUPTED
        except Exception as error:
            # An interrupt inside Numba's compiler comes out as some other error of the compiler.
            if not interrupts:
                return _report_our_fault(error)
            code = INTERRUPTED
    if code == INTERRUPTED:
        print("soaprl: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Run the process's command line and exit.

    The first interrupt ends what is at work; while the command writes and shows what it has, a second one
    waits, because some programs pass a terminal's Ctrl-C on and so send it twice. A third ends the command.
    """
    interrupts: list[int] = []

    def note_and_raise(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) == 2:
            # A print may come in the middle of another one.
            os.write(sys.stderr.fileno(), _ENDING)
            return
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note_and_raise)
    sys.exit(run(sys.argv[1:], interrupts=interrupts))


def _report_user_error(error: SoaprlError | typer.TyperException) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    if isinstance(error, typer.TyperException):
        # Without arguments the help was shown, and there is nothing to add.
        message = error.format_message() and f"{error.format_message().rstrip('.')}. See soaprl --help."
    else:
        message = str(error)
    if message:
        print(f"soaprl: error: {message}", file=sys.stderr)
    return USER_ERROR


def _report_our_fault(error: Exception) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    else:
        # Compilers explain themselves over many lines; the report will have them all.
        summary = next(iter(str(error).splitlines()), "")
        print(
            f"soaprl: internal error: {type(error).__name__}: {summary}\n"
            f"This is a fault in soaprl {__version__}; please report it with the output of the same command "
            f"run with {TRACEBACK_VARIABLE}=1.",
            file=sys.stderr,
        )
    return OUR_FAULT


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning the way errors are printed: for people, without a source line."""
    print(f"soaprl: warning: {message}", file=sys.stderr)
