"""``pgq-anyio jobs``: what the database knows of jobs, as a table, in full, or as JSON."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import attrs
import typer
from rich.table import Table

from .._models import JobId, JobRecord, JobStatus
from .options import SCHEMA, Dsn, Schema, Traceback, check_ids, open_queries
from .show import make_console, moment, printable, status_text

app = typer.Typer(help="Look at jobs, and requeue failed ones.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for each job, a line each.")]


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", "--name", metavar="NAME", help="Only jobs of this entrypoint.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs older than this one.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """List jobs, the newest first."""
    oldest = None if before is None else JobId(check_ids([before])[0])
    with open_queries(ctx, dsn, schema) as queries:
        records = queries.list_jobs(status=status, entrypoint=entrypoint, limit=limit, before=oldest)
    if as_json:
        for record in records:
            _write_json(record)
    elif not records:
        sys.stderr.write("no jobs\n")
    else:
        make_console(markup=False).print(_table(records))


def _table(records: list[JobRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "priority", "attempt"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("status", "entrypoint", "created", "ended"):
        table.add_column(column, no_wrap=column != "entrypoint")
    table.add_column("last error", overflow="ellipsis", no_wrap=True, max_width=60)
    for record in records:
        last = record.errors[-1] if record.errors else None
        table.add_row(
            str(record.id),
            str(record.priority),
            str(record.attempt),
            status_text(record.status),
            printable(record.entrypoint),
            moment(record.created_at),
            moment(record.finished_at),
            "" if last is None else printable(f"{last.type}: {' '.join(last.message.split())}"),
        )
    return table


@app.command("show")
def show_job(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The id that enqueue printed.")],
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Show all that is known of a job, its errors with their tracebacks included."""
    (number,) = check_ids([job_id])
    with open_queries(ctx, dsn, schema) as queries:
        record = queries.get_job(JobId(number))
    if record is None:
        sys.stderr.write(f"there is no job {number} in the schema {schema!r}: it never was, or its retention is over\n")
        raise typer.Exit(1)
    if as_json:
        _write_json(record)
        return
    console = make_console(markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _shown_fields(record):
        table.add_row(name, value)
    console.print(table)
    for error in record.errors:
        console.print()
        console.print(f"attempt {error.attempt}, {moment(error.failed_at)}", style="bold", markup=False)
        text = error.traceback or f"{error.type}: {error.message}\n"
        console.out(printable(text, keep="\n\t"), end="", highlight=False)


def _shown_fields(record: JobRecord) -> list[tuple[str, Any]]:
    fields = [
        ("id", str(record.id)),
        ("entrypoint", printable(record.entrypoint)),
        ("status", status_text(record.status)),
        ("priority", str(record.priority)),
        ("attempt", str(record.attempt)),
        ("lost workers", str(record.crashes) if record.crashes else ""),
        ("payload", _shown_payload(record.payload)),
        ("created", moment(record.created_at)),
        ("due", moment(record.run_at)),
        ("claimed", moment(record.claimed_at)),
        ("worker", "" if record.worker_id is None else str(record.worker_id)),
        ("ended", moment(record.finished_at)),
        ("cancel asked", moment(record.cancel_requested_at)),
        ("cancel reason", printable(record.cancel_reason or "", keep="\n")),
        ("cancelled by", printable(record.cancelled_by or "")),
        ("overdue since", moment(record.overdue_at)),
    ]
    return [(name, value) for name, value in fields if value]


def _shown_payload(payload: bytes | None) -> str:
    """The start of a payload, as text if it is some."""
    if payload is None:
        return ""
    start = payload[:200]
    more = f" … {len(payload):,} bytes" if len(payload) > len(start) else ""
    try:
        text = start.decode("utf-8", "strict" if not more else "ignore")
        shown = text if text.isprintable() else repr(start)
    except UnicodeDecodeError:
        shown = repr(start)
    return (shown or "(empty)") + more


def _write_json(record: JobRecord) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"hex": value.hex()}
        return value.isoformat()

    sys.stdout.write(json.dumps(attrs.asdict(record), default=plain, ensure_ascii=False) + "\n")
