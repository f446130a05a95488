"""``pgq-anyio demo``: the queue at work on a PostgreSQL of its own, which is gone afterwards.

What is shown is real: an ephemeral embedded server, a worker, a producer, and a summary read from the database. Every
act waits for facts and has a deadline.

Ctrl-C ends it at any time: the worker gives its jobs back. What follows has bounds of its own, so that further ones
change nothing: left to the event loop, a second Ctrl-C breaks asyncio off in the middle, and the thread of a handler
that nobody can cancel any more keeps the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Final

import anyio
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import JobRecord, PsycopgDriver, Queries
from .._embedded import EmbeddedServer
from .._store.migrations import migrate
from .backends import Backend, BackendName, choose_backend, python_version, run_on
from .demo_acts import BURST, perform
from .interrupts import Interrupts
from .logs import LogFormat, LogLevel, set_up_logging
from .options import Traceback
from .show import make_console, status_text, version

#: What one backend may take (in seconds); far more than it takes.
DEADLINE: Final = 60.0


def demo(
    ctx: typer.Context,
    backend: Annotated[
        BackendName | None, typer.Option(help="Only this event loop. Default: asyncio, then trio.", show_default=False)
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Show the queue at work on an embedded PostgreSQL. Leaves nothing behind."""
    set_up_logging(LogLevel.ERROR, LogFormat.TEXT)
    console = make_console()
    console.print(f"[bold]pgq_anyio {version()}[/], {python_version()}")
    console.print("on an embedded PostgreSQL that is removed at the end; Ctrl-C stops it at any time")
    interrupts = Interrupts(once=True)
    with interrupts.handled(), _ephemeral_server(console, interrupts) as dsn:
        for name in BackendName if backend is None else [backend]:
            chosen = choose_backend(name, None)
            run_on(chosen, partial(_show, console, dsn, chosen), interrupts)
    console.print("try it with your own jobs: [bold]pgq-anyio run module:app[/]")


async def _show(console: Console, dsn: str, backend: Backend) -> None:
    schema = f"demo_{backend.name.value}"
    console.print()
    console.print(f"[bold]── {backend} ──[/]")
    with anyio.fail_after(DEADLINE):
        async with PsycopgDriver(dsn) as driver:
            async with driver.connection() as connection:
                await migrate(connection, schema)
            queries = Queries(driver, schema=schema)
            speed = await perform(console, dsn, schema, queries)
            records = await queries.list_jobs(limit=BURST + 1000)
    _summarize(console, records)
    console.print(f"{BURST:,} jobs that do nothing were enqueued in one call and run at {speed:,.0f} jobs a second")


def _summarize(console: Console, records: list[JobRecord]) -> None:
    """What the database knows at the end."""
    console.print()
    outcomes = Counter((record.entrypoint, record.status) for record in records)
    table = Table(title="outcomes, read from the database", title_justify="left", box=None, header_style="bold")
    table.add_column("entrypoint")
    table.add_column("outcome")
    table.add_column("jobs", justify="right")
    table.add_column("attempts", justify="right")
    table.add_column("recorded")
    for (entrypoint, status), count in sorted(outcomes.items()):
        same = [record for record in records if (record.entrypoint, record.status) == (entrypoint, status)]
        notes = [record.cancel_reason for record in same if record.cancel_reason]
        notes += [f"{error.type}: {error.message}" for record in same for error in record.errors]
        attempts = str(max(record.attempt for record in same))
        table.add_row(entrypoint, status_text(status), f"{count:,}", attempts, escape("; ".join(dict.fromkeys(notes))))
    console.print(table)


@contextmanager
def _ephemeral_server(console: Console, interrupts: Interrupts) -> Iterator[str]:
    server = EmbeddedServer(ephemeral=True)
    dsn: str | None = None
    try:
        dsn = server.__enter__()
        yield dsn
    finally:
        interrupts.ignore()
        server.__exit__(None, None, None)
        if dsn is not None:
            console.print("\nthe server and its data are removed")
