"""``pgq-anyio enqueue``. It prints the ids, one a line: ``pgq-anyio enqueue … | xargs pgq-anyio cancel`` works."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import Annotated, Final

import typer

from .messages import UsageError
from .options import SCHEMA, Dsn, Schema, Traceback, as_timedelta, open_queries, parse_duration, parse_time
from .show import progress

#: So many jobs go into one call, so that progress can be shown.
CHUNK: Final = 10_000


def enqueue(
    ctx: typer.Context,
    entrypoint: Annotated[str, typer.Argument(metavar="NAME", help="The entrypoint that is to run the job.")],
    payload: Annotated[
        str | None, typer.Option("--payload", "-p", metavar="TEXT", help="The payload; - reads standard input.")
    ] = None,
    priority: Annotated[int, typer.Option(help="Higher runs first.")] = 0,
    delay: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Run after this time: 90s, 5m, 1d.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Run at this time: 2031-01-31T12:00+01:00; local without offset.")
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="How many such jobs.")] = 1,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Enqueue jobs. Prints their ids."""
    execute_after = _read_time(delay, at)
    data = _read_payload(payload)
    with open_queries(ctx, dsn, schema) as queries, progress("enqueueing", times) as done:
        for start in range(0, times, CHUNK):
            count = min(CHUNK, times - start)
            names: str | list[str] = entrypoint if times == 1 else [entrypoint] * count
            ids = queries.enqueue(names, data, priority, execute_after)
            sys.stdout.write("".join(f"{job_id}\n" for job_id in ids))
            done(count)


def _read_payload(payload: str | None) -> bytes | None:
    if payload is None:
        return None
    if payload == "-":
        return sys.stdin.buffer.read()
    return payload.encode("utf-8", "surrogateescape")  # bytes that are no UTF-8 arrive as they were typed


def _read_time(delay: float | None, at: str | None) -> timedelta | datetime | None:
    if delay is not None and at is not None:
        raise UsageError("--delay and --at say the same thing: leave one of them out")
    if delay is not None:
        return as_timedelta("--delay", delay)
    if at is None:
        return None
    return parse_time("--at", at)
