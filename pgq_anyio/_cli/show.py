"""What is written to the terminal: consoles, the words for what runs, and progress of long work.

Standard output carries what a command was asked for, and is the same through a pipe but for colours and width.
Everything else goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .._models import JobStatus

#: Columns of what goes through a pipe: wide enough that no cell of ours is cut.
PIPE_WIDTH: Final = 200
#: So many names are listed one by one.
_MOST_NAMES: Final = 12


def version() -> str:
    """The version of the package, or ``unknown`` if it runs from a directory that was never installed."""
    try:
        return importlib.metadata.version("pgq_anyio")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def make_console(*, stderr: bool = False, markup: bool = True) -> Console:
    """A console for this process' standard output, or standard error.

    :param markup: whether ``[bold]`` in a text is an instruction; not where texts of users are shown
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=markup, emoji=False, soft_wrap=not stream.isatty())


def printable(text: str, *, keep: str = "") -> str:
    """A text of somebody else, with an escape in place of what is not printable: a terminal would obey it.

    :param keep: characters that stay as they are
    """
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii") for one in text
    )


def name_list(names: Sequence[str]) -> str:
    """The names, the first of them if there are many."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_NAMES - 1])} and {len(names) - _MOST_NAMES + 1} more"


def counted(number: int, what: str) -> str:
    """``1 job``, ``3 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def moment(value: datetime | None) -> str:
    """A time in the local time zone, to the second."""
    return "" if value is None else value.astimezone().isoformat(sep=" ", timespec="seconds")


@contextmanager
def progress(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show the progress of long work, if somebody looks on.

    :param what: what is being done
    :param total: how many things are to be done
    :param console: one that other lines are written to meanwhile: they go above the bar. Defaults to standard error.
    :return: a function to call with the number of things that were done since the last call
    """
    console = console or make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is written to standard output would else go above the bar, and never reach the pipe that it is for.
    redirect = sys.stdout.isatty()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=redirect
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


_COLOURS: Final = {
    JobStatus.DEFERRED: "blue",
    JobStatus.QUEUED: "cyan",
    JobStatus.RUNNING: "yellow",
    JobStatus.SUCCESSFUL: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
}


def status_text(status: JobStatus) -> Text:
    """A status in its colour."""
    return Text(status.value, style=_COLOURS[status])
