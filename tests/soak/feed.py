"""A producer that enqueues jobs of all kinds at a steady rate, whatever happens to its database, and cancels some."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import anyio
import attrs
import psycopg

from pgq_anyio import JobId, PsycopgDriver, Queries
from tests.backends import run_on

#: Of a thousand jobs.
MIX = {
    "work": 680, "thread": 150, "process": 10, "fail": 30, "retry": 30, "snooze": 25, "later": 25, "held": 10,
    "limited": 20, "rated": 10, "serial": 10,
}  # fmt: skip
#: Between two calls (in seconds).
PAUSE = 0.05
#: How long a call may take before its answer counts as lost (in seconds).
PATIENCE = 30.0
LATER = timedelta(seconds=1)
#: How long ``held`` jobs are let run before they are cancelled (in seconds).
HELD_FOR = 0.5


@attrs.define(eq=False)
class Feed:
    """What a producer has done so far. It runs in a thread with an event loop of its own."""

    dsn: str
    schema: str
    #: jobs in a second
    rate: float
    backend: str = "asyncio"
    #: the jobs that have to end
    ids: array[int] = attrs.field(factory=lambda: array("q"), init=False)
    #: those that are not to be successful
    special: dict[int, str] = attrs.field(factory=dict, init=False)
    #: how many more there may be: enqueued by calls whose answer was lost
    uncertain: int = attrs.field(default=0, init=False)
    error: BaseException | None = attrs.field(default=None, init=False)
    _held: deque[tuple[float, list[JobId]]] = attrs.field(factory=deque, init=False)
    _ended: threading.Event = attrs.field(factory=threading.Event, init=False)

    def run(self) -> None:
        """Enqueue until told to end (the thread's function)."""
        try:
            run_on(self.backend, self._enqueue)
        except BaseException as error:
            self.error = error
            raise

    def end(self) -> None:
        """Let the call under way be the last one."""
        self._ended.set()

    async def _enqueue(self) -> None:
        random_kinds = random.Random(5)
        next_at, owed = time.monotonic(), 0.0
        async with PsycopgDriver(self.dsn, max_size=2) as driver:
            queries = Queries(driver, schema=self.schema)
            while not self._ended.is_set():
                # What could not be enqueued while the database was away is left out: the rate is steady.
                next_at = max(next_at + PAUSE, time.monotonic())
                share, owed = divmod(owed + self.rate * PAUSE, 1.0)
                kinds = random_kinds.choices(list(MIX), list(MIX.values()), k=int(share))
                if kinds:
                    await self._enqueue_some(queries, kinds)
                await self._cancel_some(queries)
                await anyio.sleep(max(0.0, next_at + PAUSE - time.monotonic()))

    async def _enqueue_some(self, queries: Queries, kinds: list[str]) -> None:
        dues = [LATER if kind == "later" else None for kind in kinds]
        try:
            with anyio.fail_after(PATIENCE):
                ids = await queries.enqueue(kinds, execute_after=dues)
        except (psycopg.OperationalError, OSError, TimeoutError):
            self.uncertain += len(kinds)
            return
        self.ids.extend(ids)
        special: dict[int, str] = {
            job_id: kind for job_id, kind in zip(ids, kinds, strict=True) if kind in ("fail", "held")
        }
        self.special |= special
        held = [job_id for job_id in ids if special.get(job_id) == "held"]
        if held:
            self._held.append((time.monotonic() + HELD_FOR, held))

    async def _cancel_some(self, queries: Queries) -> None:
        while self._held and self._held[0][0] < time.monotonic():
            try:
                with anyio.fail_after(PATIENCE):
                    await queries.mark_job_as_cancelled(self._held[0][1])
            except (psycopg.OperationalError, OSError, TimeoutError):
                return  # with the next call
            self._held.popleft()


@contextmanager
def feeding(feed: Feed) -> Iterator[Feed]:
    """Let a producer run for the length of a block."""
    thread = threading.Thread(target=feed.run, name="feed")
    thread.start()
    try:
        yield feed
    finally:
        feed.end()
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "the producer did not come to its end"
    assert feed.error is None, f"the producer has failed: {feed.error!r}"
