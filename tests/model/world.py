"""The real database under a synchronous test: an event loop in a thread, and three connections to one schema.

Two connections make moves, each at most one at a time; the third looks. A move can be left uncommitted while another
runs: ``race`` tells whether the second waited for the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

import anyio
import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pgq_anyio._db import Connection
from pgq_anyio._limits import Limits
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._store._sql import Store
from tests.model.moves import Move
from tests.model.state import ModelWorker
from tests.store.scenes import rows

_JOBS = """
select job_id, created_at, state, entrypoint, priority, payload, attempt, crashes, run_at, seq, worker_id, claim_no,
    cancel_requested, reason, status, error_type,
    (select count(*) from {schema}.attempt_error e where e.job_id = j.job_id)
from (
    select job_id, created_at, 'deferred' as state, entrypoint, priority, payload, attempt, crashes, run_at,
        null::bigint as seq, null::bigint as worker_id, null::bigint as claim_no, false as cancel_requested,
        null as reason, null as status, null as error_type
    from {schema}.deferred
    union all
    select job_id, created_at, 'queued', entrypoint, priority, payload, attempt, crashes, null,
        seq, null, null, false, null, null, null
    from {schema}.queued
    union all
    select job_id, created_at, 'running', entrypoint, priority, payload, attempt, crashes, null,
        seq, worker_id, claim_no, cancel_requested_at is not null, cancel_reason, null, null
    from {schema}.running
    union all
    select job_id, created_at, 'finished', entrypoint, priority, payload, attempt, crashes, null,
        null, worker_id, null, false, cancel_reason, status, error_type
    from {schema}.finished
) j order by job_id
"""

_LIMITS = """
select l.entrypoint, l.concurrency_limit, l.requests_per_second, l.serialized, s.slots, s.counted
from {schema}.limiter l left join {schema}.limiter_state s on s.entrypoint = l.entrypoint
"""

_CLEAR = """
with a as (delete from {schema}.deferred), b as (delete from {schema}.queued), c as (delete from {schema}.running),
    d as (delete from {schema}.finished), e as (delete from {schema}.attempt_error), f as (delete from {schema}.worker),
    g as (delete from {schema}.limiter), h as (delete from {schema}.limiter_state),
    i as (delete from {schema}.cancel_request), j as (delete from {schema}.limiter_refund),
    k as (delete from {schema}.schedule)
select 1
"""


@attrs.frozen
class LimitRow:
    """One limited name: what it allows, and the ids that its one row of state lists."""

    limits: Limits
    slots: list[int]
    #: whether the list is all that is looked at
    counted: bool


@attrs.frozen
class Raced:
    """Two moves at once: what each answered, and whether the second waited for the first."""

    first: Any
    second: Any
    waited: bool


@attrs.define(eq=False)
class World:
    """One schema of the database."""

    portal: BlockingPortal
    store: Store
    conns: list[Connection]

    @property
    def observer(self) -> Connection:
        return self.conns[2]

    def clear(self) -> None:
        """Empty all tables. Sequences go on: no number is used twice."""
        self.portal.call(rows, self.observer, self.store, _CLEAR)

    def act(self, move: Move, *, roll_back: bool = False) -> Any:
        """Make a move; its answer.

        :param roll_back: the connection breaks before the server could commit
        """
        return self.portal.call(self._act, move, roll_back)

    async def _act(self, move: Move, roll_back: bool) -> Any:
        with anyio.fail_after(20):
            if not roll_back:
                return await move.run(self.conns[0], self.store)
            async with self.conns[0].transaction(force_rollback=True):
                return await move.run(self.conns[0], self.store)

    def race(self, first: Move, second: Move, *, commit: bool) -> Raced:
        """Make a move, another one before the first is committed (or rolled back), and then commit the first."""
        return self.portal.call(self._race, first, second, commit)

    async def _race(self, first: Move, second: Move, commit: bool) -> Raced:
        answer: Any = None
        ended = anyio.Event()

        async def run() -> None:
            nonlocal answer
            answer = await second.run(self.conns[1], self.store)
            ended.set()

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:  # noqa: SIM117  (the task ends after the transaction)
                async with self.conns[0].transaction(force_rollback=not commit):
                    before = await first.run(self.conns[0], self.store)
                    tasks.start_soon(run)
                    waited = await self._wait_blocked(ended)
            return Raced(before, answer, waited)

    async def _wait_blocked(self, ended: anyio.Event) -> bool:
        """Wait until the second connection waits for the first, or has ended."""
        while not ended.is_set():
            cursor = await self.observer.execute(
                "select cardinality(pg_blocking_pids(%s)) > 0", [self.conns[1].info.backend_pid]
            )
            if (await cursor.fetchall())[0][0]:
                return True
            with anyio.move_on_after(0.002):
                await ended.wait()
        return False

    # -- what the tables hold --------------------------------------------------------------------------------------

    def read_jobs(self) -> list[tuple[int, datetime, tuple[Any, ...]]]:
        """(id, time of creation, the rest) of every row that stands for a job."""
        found = self.portal.call(rows, self.observer, self.store, _JOBS)
        return [(row[0], row[1], row[2:]) for row in found]

    def read_workers(self) -> dict[int, ModelWorker]:
        query = (
            "select worker_id, max_crashes[1], beat, left_at is not null, limit_changes, schedule_names,"
            " schedule_expressions from {schema}.worker"
        )
        found = self.portal.call(rows, self.observer, self.store, query)
        workers = {row[0]: ModelWorker(*row[1:-2]) for row in found}
        for worker_id, *_, names, expressions in found:
            workers[worker_id].serves = frozenset(zip(names, expressions, strict=True))
        return workers

    def read_schedules(self) -> list[tuple[Any, ...]]:
        """The rows of schedules, as ``ModelSchedule`` has them."""
        query = (
            "select name, expression, last_due_at, given_back_due_at, paused, asked_for, worker_id, claim_no, due_at,"
            " last_status, last_error_type from {schema}.schedule"
        )
        return self.portal.call(rows, self.observer, self.store, query)

    def read_limits(self) -> dict[str, LimitRow]:
        found: dict[str, LimitRow] = {}
        for name, concurrency, rate, serialized, slots, counted in self.portal.call(
            rows, self.observer, self.store, _LIMITS
        ):
            assert name not in found, f"{name} has more than one row of state"
            found[name] = LimitRow(Limits(concurrency, rate, serialized), slots, counted)
        return found


@contextmanager
def open_world(backend: str, dsn: str, schema: str) -> Iterator[World]:
    """Connect from an event loop in a thread."""
    with start_blocking_portal(backend) as portal, portal.wrap_async_context_manager(_connected(dsn)) as conns:
        yield World(portal, Store(schema), conns)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[list[Connection]]:
    conns = [await Connection.connect(dsn, settings=DISPATCH_SETTINGS) for _ in range(3)]
    try:
        yield conns
    finally:
        for conn in conns:
            conn.abort()
