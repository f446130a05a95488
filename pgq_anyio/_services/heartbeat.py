"""Shows that the worker is alive, and learns from the answer all that an idle worker needs to know.

The lease is a cancel scope: its deadline is the *start* of the last successful heartbeat + lease - margin. A
heartbeat that
fails is tried again at once on a new connection and then with growing pauses, until it succeeds or the scope's deadline
ends the term. The first attempt of each has half an interval: a connection that went silent must not cost the lease, so
there has to be time for another one. The connection is closed then, not tidied up. A heartbeat whose row is gone ends
the term at once: somebody has declared this worker dead.

After a reconnect the worker compares what it holds with what the database says (reconcile): a crash of the server may
have undone claims, and claims may have been committed whose answer was lost.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

import anyio
import attrs
from anyio import CancelScope
from anyio.abc import TaskStatus
from psycopg import Error

from .._db import Connection, is_transient
from .._db.line import Line
from .._doorbell import Doorbell
from .._holdings import Holdings
from .._models import JobId
from .._store._sql import Store
from .._store.running import give_back_claims, list_claims
from .._store.worker import Pulse, beat_worker

logger = logging.getLogger("pgq_anyio.heartbeat")

#: Heartbeats per lease.
BEATS_PER_LEASE: Final = 3
#: Pauses after failed heartbeats (in seconds): the first, and the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


@attrs.define(eq=False, kw_only=True)
class Heart:
    """What a heartbeat knows."""

    line: Line
    store: Store
    worker_id: int
    holdings: Holdings
    lease: float
    #: how long before the end of the lease the jobs are cancelled (in seconds)
    margin: float
    lease_scope: CancelScope
    #: called with every answer and the time at which it was asked for (event loop's clock)
    on_pulse: Callable[[Pulse, float], None]
    reconnects: int = attrs.field(default=1, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)

    @property
    def interval(self) -> float:
        """Pause between heartbeats (in seconds)."""
        return self.lease / BEATS_PER_LEASE

    def beat_soon(self) -> None:
        """Do not wait for the next heartbeat's time: there is something to give back, or to compare."""
        self._bell.ring()

    async def rest(self) -> None:
        """Wait until it is time for the next heartbeat."""
        await self._bell.wait(self.interval * random.uniform(0.9, 1.0))  # noqa: S311  (jitter, not a secret)


async def run_heartbeat(heart: Heart, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Beat until cancelled, or until the lease is lost."""
    started = False
    pause = FIRST_PAUSE
    patience = heart.interval / 2
    try:
        while True:
            try:
                with anyio.fail_after(patience):
                    alive = await beat_once(heart)
            except (Error, OSError, TimeoutError) as error:
                if not (isinstance(error, TimeoutError | OSError) or is_transient(error)):
                    raise
                logger.warning("a heartbeat failed, trying again: %s", error)
                heart.line.close()
                await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, not a secret)
                pause = min(pause * 2, LONGEST_PAUSE, heart.interval)
                patience = heart.interval
                continue
            if not alive:
                logger.warning("this worker has been declared dead by another one: its jobs are cancelled")
                heart.lease_scope.cancel()
                if not started:
                    task_status.started()
                return
            pause = FIRST_PAUSE
            patience = heart.interval / 2
            if not started:
                started = True
                task_status.started()
            await heart.rest()
    finally:
        heart.line.close()


async def beat_once(heart: Heart) -> bool:
    """One heartbeat, with what follows from its answer.

    :return: whether the worker is still one
    """
    asked_at = anyio.current_time()
    conn = await heart.line.connection()
    unresolved = heart.holdings.unresolved
    pulse = await beat_worker(conn, heart.store, worker_id=heart.worker_id, unresolved=unresolved)
    if pulse is None:
        return False
    heart.lease_scope.deadline = asked_at + heart.lease - heart.margin
    for job_id, claim_no in pulse.cancel_requested:
        heart.holdings.request_cancel(job_id, claim_no)
    heart.on_pulse(pulse, asked_at)
    unknown: list[tuple[JobId | None, int]] = [(None, number) for number in unresolved] if pulse.strays else []
    if heart.line.opened != heart.reconnects:
        unknown += await reconcile_once(heart, conn)
        heart.reconnects = heart.line.opened
    if unknown:
        given_back = await give_back_claims(conn, heart.store, worker_id=heart.worker_id, unknown=unknown)
        if given_back:
            logger.warning("gave back %d jobs that were claimed without an answer: %s", len(given_back), given_back)
    return True


async def reconcile_once(heart: Heart, conn: Connection) -> list[tuple[JobId | None, int]]:
    """Compare what we hold with what the database says; what it holds for us and we do not know."""
    before = heart.holdings.known()
    rows = await list_claims(conn, heart.store, worker_id=heart.worker_id)
    return heart.holdings.reconcile(before, rows)
