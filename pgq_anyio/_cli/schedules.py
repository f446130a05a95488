"""``pgq-anyio schedules``: what the database knows of schedules, and what operators do to them.

Each command names a schedule and, where one name has several, its expression; without one all of the name are meant.
Running workers hear of it at once. Nothing to do is no error, but is told; a name that is unknown is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated

import attrs
import typer
from rich.table import Table
from rich.text import Text

from .._client import SyncQueries
from .._models import JobStatus, ScheduleRecord
from .options import SCHEMA, Dsn, Schema, Traceback, open_queries
from .show import make_console, moment, printable, status_text

app = typer.Typer(help="Look at schedules, pause and resume them, run them now.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the schedule.")]
Expression = Annotated[
    str | None,
    typer.Argument(
        metavar="[EXPRESSION]", help="One of its cron expressions, quoted. Default: all.", show_default=False
    ),
]


@app.command("list")
def list_schedules(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each schedule, a line each.")] = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """List schedules: when they run next, where they run, how the last run ended."""
    with open_queries(ctx, dsn, schema) as queries:
        records = queries.schedules()
    if as_json:
        for record in records:
            fields = json.dumps(attrs.asdict(record), default=lambda value: value.isoformat(), ensure_ascii=False)
            sys.stdout.write(fields + "\n")
    elif not records:
        sys.stderr.write("no schedules\n")
    else:
        make_console(markup=False).print(_table(records))


def _table(records: list[ScheduleRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "expression", "time zone", "state", "next", "last ended", "outcome"):
        table.add_column(column, no_wrap=column not in ("name", "state"))
    table.add_column("last error", overflow="ellipsis", no_wrap=True, max_width=60)
    for record in records:
        table.add_row(
            printable(record.name),
            printable(record.expression),
            printable(record.timezone),
            _state(record),
            moment(record.next_due_at),
            moment(record.last_finished_at),
            _outcome(record.last_status),
            _error(record),
        )
    return table


def _state(record: ScheduleRecord) -> str:
    """What is to be known of it now, in words."""
    running = f"running since {moment(record.started_at)} on {printable(record.worker_name or 'a worker that is gone')}"
    states = [
        running if record.worker_id is not None else "",
        "paused" if record.paused else "",
        "no worker has its code" if record.is_orphaned else "",
    ]
    return "; ".join(filter(None, states)) or "waiting"


def _outcome(status: str | None) -> Text:
    if status is None or status == "given_back":
        return Text("to be run again" if status else "")
    return status_text(JobStatus(status))


def _error(record: ScheduleRecord) -> str:
    parts = [record.last_error_type, " ".join((record.last_error_message or "").split())]
    return printable(": ".join(filter(None, parts)))


@app.command("pause")
def pause(
    ctx: typer.Context,
    name: Name,
    expression: Expression = None,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Start no more runs; a run that is going goes on. What comes due meanwhile is passed over."""
    with open_queries(ctx, dsn, schema) as queries:
        done = queries.pause_schedule(name, expression)
        _tell(queries, name, expression, done, "paused", lambda record: "is paused already")


@app.command("resume")
def resume(
    ctx: typer.Context,
    name: Name,
    expression: Expression = None,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Run again, from the next time on."""
    with open_queries(ctx, dsn, schema) as queries:
        done = queries.resume_schedule(name, expression)
        _tell(queries, name, expression, done, "resumed", lambda record: "is not paused")


@app.command("run")
def run_now(
    ctx: typer.Context,
    name: Name,
    expression: Expression = None,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Run once, now, whatever its times are and even if it is paused; it stays paused."""
    with open_queries(ctx, dsn, schema) as queries:
        done = queries.run_schedule(name, expression)
        _tell(queries, name, expression, done, "will run", lambda record: "was registered only now: try again")


@app.command("remove")
def remove(
    ctx: typer.Context,
    name: Name,
    expression: Expression = None,
    force: Annotated[bool, typer.Option("--force", help="Also what a worker has the code for, or runs.")] = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Forget a schedule whose code is gone."""
    with open_queries(ctx, dsn, schema) as queries:
        before = queries.schedules()
        done = queries.remove_schedule(name, expression, force=force)
        _tell(queries, name, expression, done, "removed", _why_kept, before)


def _why_kept(record: ScheduleRecord) -> str:
    why = "is running" if record.worker_id is not None else "is registered by a live worker"
    return f"{why}: stop its worker first, or use --force"


def _tell(
    queries: SyncQueries,
    name: str,
    expression: str | None,
    done: list[tuple[str, str]],
    what: str,
    why_not: Callable[[ScheduleRecord], str],
    known: list[ScheduleRecord] | None = None,
) -> None:
    """Print what was done, and say why the others of the name were left alone.

    :raises typer.Exit: if there is no such schedule
    """
    for key in done:
        sys.stdout.write(f"{what}: {printable(' '.join(key))}\n")
    fields = None if expression is None else " ".join(expression.split())
    records = [
        record
        for record in (queries.schedules() if known is None else known)
        if record.name == name and fields in (None, record.expression)
    ]
    for record in records:
        if (record.name, record.expression) not in done:
            sys.stderr.write(f"{printable(f'{record.name} {record.expression}')} {why_not(record)}\n")
    if not records and not done:
        called = name if expression is None else f"{name} {fields}"
        sys.stderr.write(f"there is no schedule {called!r}: pgq-anyio schedules list shows all\n")
        raise typer.Exit(1)
