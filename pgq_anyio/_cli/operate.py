"""``pgq-anyio cancel`` and ``pgq-anyio jobs requeue``: what operators do to jobs, by id and by filter.

Both print the ids that they affected, and say on standard error what became of the others; ids for which there was
nothing to do are no error. By filter they ask before they do it, for nobody has seen the list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from .._client._filters import ended_filter, unfinished_filter
from .._models import JobId, JobStatus
from .messages import UsageError
from .options import (
    SCHEMA,
    Dsn,
    Schema,
    Traceback,
    as_timedelta,
    check_ids,
    open_queries,
    option_name,
    parse_duration,
    parse_time,
)
from .show import counted, progress

#: So many jobs go into one call, so that progress can be shown.
CHUNK: Final = 10_000

#: Options that are not called as the filters of ``Queries.requeue`` are.
_SHORTER: Final = {"error_type": "--error", "finished_after": "--after", "finished_before": "--before"}

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="The ids that enqueue printed.")]
Entrypoint = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of ids: jobs of this entrypoint.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def cancel(
    ctx: typer.Context,
    ids: Ids = None,
    entrypoint: Entrypoint = None,
    status: Annotated[
        JobStatus | None, typer.Option(help="Instead of ids: jobs that are deferred, queued or running.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Instead of ids: jobs created longer ago."),
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Recorded with the jobs.")] = None,
    yes: Yes = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Cancel jobs: deferred and queued ones never run, running ones are interrupted. Prints the ids affected."""
    filters: dict[str, Any] = {
        "entrypoint": entrypoint,
        "status": status,
        "older_than": None if older_than is None else as_timedelta("--older-than", older_than),
    }
    wanted = check_ids(ids or [])
    if unfinished_filter(wanted or None, **filters, called=option_name) is None:
        with open_queries(ctx, dsn, schema) as queries:
            affected = _in_chunks("cancelling", wanted, lambda chunk: queries.mark_job_as_cancelled(chunk, reason))
        _tell(wanted, affected, "had ended already")
        return
    which = f"all {status or 'unfinished'} jobs"
    which += f" of {entrypoint!r}" if entrypoint is not None else ""
    which += f" that are older than {filters['older_than']}" if older_than is not None else ""
    _confirm(f"cancel {which} in the schema {schema!r}", yes)
    with open_queries(ctx, dsn, schema) as queries:
        matching = queries.mark_job_as_cancelled(reason=reason, **filters)
    _print_ids(matching)
    _tell([], matching)


def requeue(
    ctx: typer.Context,
    ids: Ids = None,
    entrypoint: Entrypoint = None,
    status: Annotated[
        JobStatus | None, typer.Option(help="Instead of ids: jobs that failed (the default) or were cancelled.")
    ] = None,
    error_type: Annotated[
        str | None,
        typer.Option("--error", metavar="CLASS", help="Instead of ids: jobs whose last error is of this class."),
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Instead of ids: jobs that ended at this time or later.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Instead of ids: jobs that ended before this time.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many of those that match.")] = None,
    yes: Yes = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Enqueue failed and cancelled jobs again, with the same id, payload and priority. Prints the ids affected."""
    filters: dict[str, Any] = {
        "entrypoint": entrypoint,
        "status": status,
        "error_type": error_type,
        "finished_after": None if after is None else parse_time("--after", after),
        "finished_before": None if before is None else parse_time("--before", before),
        "limit": limit,
    }
    wanted = check_ids(ids or [])
    if ended_filter(wanted or None, **filters, called=lambda name: _SHORTER.get(name, option_name(name))) is None:
        with open_queries(ctx, dsn, schema) as queries:
            affected = _in_chunks("requeueing", wanted, queries.requeue)
        _tell(wanted, affected, "had not failed")
        return
    which = f"{'all' if limit is None else f'at most {limit}'} {status or JobStatus.FAILED} jobs"
    which += f" of {entrypoint!r}" if entrypoint is not None else ""
    which += f" with error {error_type!r}" if error_type is not None else ""
    which += f" that ended since {after}" if after is not None else ""
    which += f"{' and' if after is not None else ' that ended'} before {before}" if before is not None else ""
    _confirm(f"requeue {which} in the schema {schema!r}", yes)
    with open_queries(ctx, dsn, schema) as queries:
        matching = queries.requeue(**filters)
    _print_ids(matching)
    _tell([], matching)


def _confirm(what: str, yes: bool) -> None:
    """Ask before jobs are touched that nobody has named.

    :raises UsageError: if there is nobody to ask
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"this would {what}: say that you mean it with --yes")
    typer.confirm(f"{what}?", abort=True, err=True)


def _in_chunks(what: str, wanted: list[int], act: Callable[[list[JobId]], list[JobId]]) -> list[JobId]:
    affected: list[JobId] = []
    with progress(what, len(wanted)) as done:
        for start in range(0, len(wanted), CHUNK):
            chunk = [JobId(number) for number in wanted[start : start + CHUNK]]
            ended = act(chunk)
            _print_ids(ended)  # at once: the next chunk may fail
            affected += ended
            done(len(chunk))
    return affected


def _print_ids(ids: list[JobId]) -> None:
    sys.stdout.write("".join(f"{job_id}\n" for job_id in ids))
    sys.stdout.flush()


def _tell(wanted: list[int], affected: list[JobId], otherwise: str = "") -> None:
    """Say of how many jobs nothing became, after the others have been printed."""
    others = len(set(wanted)) - len(set(affected))
    if others > 0:
        sys.stderr.write(f"{counted(others, 'job')} {otherwise}, or {'is' if others == 1 else 'are'} unknown\n")
    elif not affected:
        sys.stderr.write("no job matches\n")
