"""How subcommands print: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from soaprl.report.comparison import COLUMNS, Outcome, comparison_rows

# As the shell counts it: 128 and the number of SIGINT.
INTERRUPTED = 130
_UNLIMITED = 10_000


def print_json(result: Mapping[str, Any]) -> None:
    """Print `result` as the command's one JSON object on standard output."""
    print(json.dumps(result, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output; columns of numbers are aligned right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_header=any(columns)
    )
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index] in ("", "-") for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    # A pipe or file has no width to respect: rich would cut cells to fit 80 columns, and break long titles.
    console = Console(width=max(Console(width=_UNLIMITED).measure(table).maximum, len(title)))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_outcomes(title: str, outcomes: Sequence[Outcome]) -> None:
    """Print strategies for one problem side by side."""
    print_table(title, COLUMNS, comparison_rows(outcomes))


def say(message: str) -> None:
    """Print a line for people on standard error."""
    print(message, file=sys.stderr)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress display on standard error, silent where that is not a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float, str], None]]:
    """A listener to names, shares that are done, and more about them; it draws a bar for each name."""
    with progress_bar() as display:
        bars: dict[str, TaskID] = {}

        def listen(what: str, done: float, status: str) -> None:
            if what not in bars:
                bars[what] = display.add_task(what, total=1.0, status="")
            display.update(bars[what], completed=done, status=status)

        yield listen


@contextmanager
def waiting(what: str, status: str) -> Iterator[None]:
    """A display on standard error that moves until the work is done.

    Args:
        what: What is done.
        status: More about it.
    """
    with progress_bar() as display:
        display.add_task(what, total=None, status=status)
        yield
