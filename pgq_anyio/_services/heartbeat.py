"""Shows that the worker is alive, and learns from the answer all that an idle worker needs to know.

The lease counts from the *start* of the last successful heartbeat (``_lease.py``). One that fails is tried again at
once on a new connection and then with growing pauses, until it succeeds or the end of the lease ends the term. The
first attempt of each has half an interval: a connection that went silent must not cost the lease, so there has to be
time for another one. The connection is closed then, not tidied up. A heartbeat whose row is gone ends the term:
somebody has declared this worker dead.

Between heartbeats it looks, on the same connection, whether jobs that a notification names are to be cancelled in
truth, for anybody can send one. A look is one short statement that changes nothing. If it fails, the heartbeat that
follows asks the same of all jobs.

When a session of the server answers that never did before, the worker compares what it holds with what the database
says (reconcile): a crash of the server may have undone claims, and claims may have been committed whose answer was
lost. No session survives a crash, whereas a connection to a pooler may, and a postmaster too. It compares as well when
any other connection of the worker had to be replaced.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus
from psycopg import Error

from .._db import Connection, is_transient
from .._db.line import Line
from .._doorbell import Doorbell
from .._errors import in_a_line
from .._holdings import Holdings
from .._lease import Lease
from .._models import JobId
from .._store._sql import Store
from .._store.running import find_cancelled, give_back_claims, list_claims
from .._store.worker import BEATS_PER_LEASE, Pulse, beat_worker

logger = logging.getLogger("pgq_anyio.heartbeat")

#: Pauses after failed heartbeats (in seconds): the first, and the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
#: Pause after a look that found nothing to cancel (in seconds): false notifications are to cause few statements.
PAUSE_IN_VAIN: Final = 0.05
#: How many jobs a look may be about; beyond that a heartbeat asks about all.
MAX_NAMED: Final = 10_000
#: How many sessions are remembered: a pooler has few at a time. One that is forgotten costs one comparison.
MAX_SESSIONS: Final = 1000


@attrs.define(eq=False, kw_only=True)
class Heart:
    """What a heartbeat knows."""

    line: Line
    store: Store
    worker_id: int
    holdings: Holdings
    lease: Lease
    #: called with every answer and the time at which it was asked for (event loop's clock)
    on_pulse: Callable[[Pulse, float], None]
    #: called when a session has answered that never did before, but for the first
    on_new_session: Callable[[], None]
    #: the sessions of the server that have answered
    _sessions: set[str] = attrs.field(factory=set, init=False)
    #: how often something else made us doubt what we hold, and how often it had when we compared last
    doubts: int = attrs.field(default=0, init=False)
    settled_doubts: int = attrs.field(default=0, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: whether the next heartbeat is wanted before its time
    _is_wanted: bool = attrs.field(default=False, init=False)
    #: (job id, claim number) of jobs that notifications have named since the last look
    _named: set[tuple[JobId, int]] = attrs.field(factory=set, init=False)

    @property
    def interval(self) -> float:
        """Pause between heartbeats (in seconds)."""
        return self.lease.duration / BEATS_PER_LEASE

    def beat_soon(self) -> None:
        """Do not wait for the next heartbeat's time: there is something to give back, or to compare."""
        self._is_wanted = True
        self._bell.ring()

    def compare_soon(self) -> None:
        """A connection had to be replaced: the server may have crashed."""
        self.doubts += 1
        self.beat_soon()

    def knows(self, session: str) -> bool:
        """Whether a session is known to have lived through all that we know; the first one is taken to."""
        return session in self._sessions or not self._sessions

    def learn(self, session: str) -> None:
        """What we hold has been compared since this session began."""
        if len(self._sessions) >= MAX_SESSIONS:
            self._sessions.clear()
        self._sessions.add(session)

    def look_soon(self, jobs: Iterable[tuple[JobId, int]]) -> None:
        """Ask the database which of these jobs, (job id, claim number), are to be cancelled."""
        self._named.update(key for key in jobs if self.holdings.can_cancel(*key))
        if len(self._named) > MAX_NAMED:
            self._named.clear()
            self.beat_soon()
        elif self._named:
            self._bell.ring()

    def take_named(self) -> list[JobId]:
        """The jobs to ask about, once."""
        named, self._named = self._named, set()
        return sorted({job_id for job_id, claim_no in named if self.holdings.can_cancel(job_id, claim_no)})

    def deliver(self, jobs: Iterable[tuple[JobId, int]]) -> bool:
        """These jobs are to be cancelled, says the database; whether that is new of any of them."""
        is_new = False
        for key in jobs:
            self._named.discard(key)
            is_new = self.holdings.request_cancel(*key) or is_new
        return is_new

    async def rest(self) -> None:
        """Wait until it is time for the next heartbeat, and look where jobs are named."""
        due_at = anyio.current_time() + self.interval * random.uniform(0.9, 1.0)  # noqa: S311  (jitter, not a secret)
        while not self._is_wanted and (pause := due_at - anyio.current_time()) > 0:
            await self._bell.wait(pause)
            if self._named and not await try_look(self):
                break
        self._is_wanted = False


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
                logger.warning("a heartbeat failed, trying again: %s", in_a_line(error))
                heart.line.close()
                await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, not a secret)
                pause = min(pause * 2, LONGEST_PAUSE, heart.interval)
                patience = heart.interval
                continue
            if not alive:
                follows = (
                    "go on, and what becomes of them does not count" if heart.lease.spares_jobs else "are cancelled"
                )
                logger.warning("this worker has been declared dead by another one: its jobs %s", follows)
                heart.lease.revoke()
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
    heart.lease.renew(asked_at)
    heart.deliver(pulse.cancel_requested)
    heart.on_pulse(pulse, asked_at)
    unknown: list[tuple[JobId | None, int]] = [(None, number) for number in unresolved] if pulse.strays else []
    doubts = heart.doubts
    is_new = not heart.knows(pulse.session)
    if is_new or doubts != heart.settled_doubts:
        unknown += await reconcile_once(heart, conn)
        heart.settled_doubts = doubts
        if is_new:
            heart.on_new_session()
    heart.learn(pulse.session)
    if unknown:
        given_back = await give_back_claims(conn, heart.store, worker_id=heart.worker_id, unknown=unknown)
        if given_back:
            logger.warning("gave back %d jobs that were claimed without an answer: %s", len(given_back), given_back)
    return True


async def try_look(heart: Heart) -> bool:
    """Look, and pause if it was in vain; whether the database answered."""
    try:
        with anyio.fail_after(heart.interval / 2):
            found_any = await look_once(heart)
    except (Error, OSError, TimeoutError) as error:
        if not (isinstance(error, TimeoutError | OSError) or is_transient(error)):
            raise
        logger.info("looking for cancel requests failed, the next heartbeat asks again: %s", error)
        heart.line.close()
        return False
    if not found_any:
        await anyio.sleep(PAUSE_IN_VAIN)
    return True


async def look_once(heart: Heart) -> bool:
    """Cancel those of the named jobs that are to be cancelled; whether there was any."""
    job_ids = heart.take_named()
    if not job_ids:
        return True
    conn = await heart.line.connection()
    return heart.deliver(await find_cancelled(conn, heart.store, worker_id=heart.worker_id, job_ids=job_ids))


async def reconcile_once(heart: Heart, conn: Connection) -> list[tuple[JobId | None, int]]:
    """Compare what we hold with what the database says; what it holds for us and we do not know."""
    before = heart.holdings.known()
    rows = await list_claims(conn, heart.store, worker_id=heart.worker_id)
    return heart.holdings.reconcile(before, rows)
