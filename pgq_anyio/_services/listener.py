"""Hears notifications: that there is work, that the promoter or the scheduler has to look, that a job is to be
cancelled.

Nothing depends on them: whatever a notification says is found by polling and by heartbeats too. Nor are they believed:
any role that may connect to the database can send any notification, so that all a notification ever does is to make a
service look, and what cannot be read is ignored. Each heartbeat sends an
echo to a channel of this worker alone; a listener that hears nothing for a whole lease, although heartbeats go through,
takes its connection for dead (half-open, or to another database) and opens a new one.

Through a transaction pooler it does not listen: LISTEN would stay with a session of the server that is somebody else's
a moment later, and nothing would be heard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus
from psycopg import Error, OperationalError, sql

from .._db import Connection, is_transient, retrying
from .._db.line import Line
from .._models import JobId

logger = logging.getLogger("pgq_anyio.listener")

#: How long a worker that starts waits for its listener (in seconds).
PATIENCE: Final = 2.0
#: How long connecting and LISTEN may take together later on (in seconds).
LISTEN_TIMEOUT: Final = 15.0
#: A connection that has lasted this long (in seconds) has worked.
WORKING: Final = 1.0

#: The last second of the year 9999 (since 1970), and the largest bigint: what a notification can name.
MAX_TIME: Final = 253402300799
MAX_ID: Final = 2**63 - 1

#: What is said once if there is no listening.
DEAF: Final = (
    "the database is reached through a pooler, so that notifications cannot be heard: jobs are found within %g s"
    " (dequeue_timeout), and cancel requests with the next heartbeat. For immediate wake-ups name a way around the"
    " pooler with --direct-dsn, PGQ_ANYIO_DIRECT_DSN, or PsycopgDriver(direct_conninfo=...); if the pooler keeps"
    " sessions, that can be the same DSN"
)


def worker_channel(worker_id: int) -> str:
    """The channel on which only this worker listens."""
    return f"pgq_anyio.w{worker_id}"


@attrs.define(eq=False, kw_only=True)
class Ear:
    """What a listener knows."""

    line: Line
    channels: tuple[str, ...]
    #: seconds without any notification after which the connection counts as dead
    silence: float
    #: how often the queue is looked at if nothing is heard (in seconds), to say so
    poll_interval: float
    #: called with the text of every notification
    on_notification: Callable[[str], None]
    #: called after every (re)connect: something may have been missed
    on_listening: Callable[[], None]


async def run_listener(ear: Ear, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Listen until cancelled, or not at all through a pooler; started once it listens, or cannot (for now)."""
    started = False

    async def listen() -> bool:
        nonlocal started
        try:
            try:
                conn = await open_once(ear, LISTEN_TIMEOUT if started else PATIENCE)
            except Error as error:
                # Work does not wait for what it does not depend on, such as a way around the pooler that leads to a
                # server which is a standby now: that is an InternalError.
                if not started and is_transient(error):
                    started = True
                    task_status.started()
                raise
            if not started:
                started = True
                task_status.started()
            if conn.is_pooled:
                return False
            began_at = anyio.current_time()
            try:
                while await hear_once(ear, conn):
                    pass
            except OperationalError as error:
                if anyio.current_time() - began_at < WORKING or not is_transient(error):
                    raise
                # It did work: no reason to wait before the next one, however often this has happened.
                logger.info("listening on a new connection: %s", error)
            return True
        finally:
            ear.line.close()

    while await retrying(listen, what="listening for notifications"):
        pass
    logger.warning(DEAF, ear.poll_interval)


async def open_once(ear: Ear, timeout: float) -> Connection:
    """Connect and listen, unless through a pooler.

    :param timeout: how long both may take together (in seconds)
    :raises psycopg.OperationalError: if that takes too long
    """
    with anyio.move_on_after(timeout):
        conn = await ear.line.connection()
        if not conn.is_pooled:
            await subscribe(conn, ear.channels)
        ear.on_listening()
        return conn
    raise OperationalError(f"the server did not let us listen within {timeout:g} s")


async def subscribe(conn: Connection, channels: tuple[str, ...]) -> None:
    """LISTEN on every channel."""
    for channel in channels:
        await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))


async def hear_once(ear: Ear, conn: Connection) -> bool:
    """Wait for notifications and pass them on.

    :raises psycopg.OperationalError: if nothing was heard for too long
    """
    notifications = await conn.wait_notifies(ear.silence)
    if not notifications:
        raise OperationalError(f"no notification was heard for {ear.silence:g} s although heartbeats send one")
    for notification in notifications:
        ear.on_notification(notification.payload)
    return True


@attrs.frozen
class Wake:
    """There is work for ``entrypoint`` (``None``: for some name); ``in_front``: it may lie left of every hint."""

    entrypoint: str | None
    in_front: bool


@attrs.frozen
class Alarm:
    """A deferred job may be due earlier than was known."""

    #: when (in seconds since 1970, by the database's clock), or ``None`` if that is not said
    run_at: float | None


@attrs.frozen
class CancelRequest:
    """Jobs of one worker may have been asked to end: whether they were, the database says."""

    worker_id: int
    #: (job id, claim number)
    jobs: list[tuple[JobId, int]]


@attrs.frozen
class SlotFree:
    """A name that was full is not any more (``None``: some name)."""

    entrypoint: str | None


@attrs.frozen
class LimitChange:
    """A worker that started has changed limits."""


@attrs.frozen
class ScheduleChange:
    """A schedule was paused or resumed, or may run again."""


Notification = Wake | Alarm | CancelRequest | SlotFree | LimitChange | ScheduleChange


def parse_notification(payload: str) -> Notification | None:
    """What a notification says; ``None`` for an echo, and for words that this version does not know."""
    word, _, rest = payload.partition(":")
    match word:
        case "queued" | "front":
            # Long names are cut: such a notification is for whoever it may concern.
            return Wake(rest if 0 < len(rest) < 1000 else None, in_front=word == "front")
        case "slot":
            return SlotFree(rest if 0 < len(rest) < 1000 else None)
        case "limits":
            return LimitChange()
        case "deferred":
            return Alarm(_parse_time(rest))
        case "cancel":
            return _parse_cancel(rest)
        case "schedule":
            return ScheduleChange()
        case _:
            return None


def _parse_time(text: str) -> float | None:
    """A time of this era; ``None``, which is right for any, if it is not one."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < MAX_TIME else None


def _parse_cancel(text: str) -> CancelRequest | None:
    worker_id, _, jobs = text.partition(":")
    try:
        pairs = [job.split(".") for job in jobs.split(",")]
        numbers = [(JobId(int(job_id)), int(claim_no)) for job_id, claim_no in pairs]
        if not all(0 < job_id <= MAX_ID for job_id, _ in numbers):
            raise ValueError
        return CancelRequest(int(worker_id), numbers)
    except ValueError:
        logger.debug("a notification that cannot be read was ignored: %r", text[:100])
        return None
