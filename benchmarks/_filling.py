"""Jobs in the tables of pgq_anyio without its producers: millions in seconds, all in one transaction if need be."""

from __future__ import annotations

import psycopg

from pgq_anyio._store.migrations import migrate_sync

CHUNK = 1_000_000


def make_tables(dsn: str) -> None:
    """In a fresh database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        migrate_sync(conn, "pgq_anyio")


def insert_queued(conn: psycopg.Connection[tuple[object, ...]], jobs: int) -> None:
    """Jobs that are due, with 100 bytes of payload."""
    for start in range(0, jobs, CHUNK):
        conn.execute(
            "insert into pgq_anyio.queued (entrypoint, payload) "
            "select 'noop', convert_to(repeat('x', 100), 'UTF8') from generate_series(1, %s)",
            [min(CHUNK, jobs - start)],
        )


def insert_deferred(conn: psycopg.Connection[tuple[object, ...]], jobs: int, *, priority: int) -> None:
    """Jobs that are due in a day."""
    for start in range(0, jobs, CHUNK):
        conn.execute(
            "insert into pgq_anyio.deferred (run_at, entrypoint, priority, payload) "
            "select now() + interval '1 day', 'noop', %s, convert_to(repeat('x', 100), 'UTF8') "
            "from generate_series(1, %s)",
            [priority, min(CHUNK, jobs - start)],
        )
