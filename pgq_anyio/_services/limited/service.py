"""The loop: what is done next, and what is waited for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskStatus
from psycopg import Error

from ..._db import retrying
from ..._db.retrying import PATIENCE
from ..._limited_name import LimitedName
from ..._store.limiter import list_limits, list_writers, notify_slots, set_dozing
from ..._strict_hints import StrictHints
from .claimer import LimitedClaimer
from .claiming import claim_limited_once

logger = logging.getLogger("pgq_anyio.limits")

#: Pause between two notifications that slots are free which we cannot take (in seconds).
TELL_PAUSE: Final = 0.05
#: How long the last one may take (in seconds).
LAST_WORDS: Final = 0.5


async def run_limited(claimer: LimitedClaimer, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Claim until cancelled."""
    task_status.started()
    try:
        await _claim_for_ever(claimer)
    finally:
        # From here on, the completer tells of slots that become free.
        claimer.has_ended = True
        with anyio.move_on_after(LAST_WORDS, shield=True):
            await _tell_last(claimer)


async def _claim_for_ever(claimer: LimitedClaimer) -> None:
    while True:
        await claimer.stop.checkpoint()
        if claimer.outdated:
            claimer.holdings.end_turn()
            await retrying(partial(refresh_once, claimer), what="reading the limits", patience=PATIENCE)
        elif not (due := claimer.due()):
            claimer.holdings.end_turn()
            await _doze(claimer)
            claimer.on_idle()
            await claimer.wait_news(await _tell(claimer, claimer.lacking()))
        elif claimer.holdings.free < 1:
            claimer.holdings.end_turn(next_one=True)
            pause = await _tell(claimer, [*due, *claimer.lacking()])
            if claimer.holdings.free < 1:
                await claimer.room.wait(pause)
        else:
            await _tell(claimer, claimer.lacking())
            await retrying(partial(claim_limited_once, claimer, due), what="claiming limited jobs")
            await retrying(partial(list_writers_once, claimer), what="listing who enqueues", patience=PATIENCE)
            await _doze(claimer)


async def refresh_once(claimer: LimitedClaimer) -> None:
    """Read the definitions."""
    claimer.outdated = False  # a change that is heard of while they are under way may not be among them
    try:
        conn = await claimer.line.connection()
        names = list(claimer.registered)
        claimer.define(await list_limits(conn, claimer.store, names, worker_id=claimer.worker_id))
    except BaseException:
        claimer.outdated = True
        raise


async def list_writers_once(claimer: LimitedClaimer) -> bool:
    """Let the hints of serialized names move on, if it is time; whether it was."""
    strict = [one.hints for one in claimer.names.values() if isinstance(one.hints, StrictHints)]
    if not any(hints.wants_writers(anyio.current_time()) for hints in strict):
        return False
    writers = await list_writers(await claimer.line.connection(), claimer.store)
    for hints in strict:
        hints.see_writers(writers, anyio.current_time())
    return True


async def _tell(claimer: LimitedClaimer, names: Sequence[LimitedName]) -> float | None:
    """Tell other workers of slots that this one has freed and has no room for; in how many seconds to do so again."""
    freed = [one for one in names if one.freed]
    if not freed:
        return None
    now = anyio.current_time()
    if (left := claimer.told_at + TELL_PAUSE - now) > 0:
        return left
    claimer.told_at = now
    told = {one.name: one.freed for one in freed}
    for one in freed:
        one.freed = 0

    async def tell() -> None:
        await notify_slots(await claimer.line.connection(), claimer.store, list(told))

    try:
        await retrying(tell, what="telling that slots are free", patience=PATIENCE)
    except BaseException:
        for one in freed:
            one.freed += told[one.name]  # the last words are to tell of them
        raise
    return None


async def _tell_last(claimer: LimitedClaimer) -> None:
    """Tell of the slots that were freed and not looked at; if that fails, the end of the worker tells of all."""
    freed = [one.name for one in claimer.names.values() if one.freed]
    if not freed:
        return
    try:
        await notify_slots(await claimer.line.connection(), claimer.store, freed)
    except (Error, OSError) as error:
        logger.info("other workers could not be told that slots are free: %s", error)


async def _doze(claimer: LimitedClaimer) -> None:
    """Bring the row of the worker up to date: for which names it is to be notified."""
    sleepers = claimer.sleepers()
    empty = {one.name for one in claimer.names.values() if one.empty}
    if empty <= claimer.dozing and not (claimer.dozing - sleepers):
        return

    async def mark() -> None:
        conn = await claimer.line.connection()
        await set_dozing(conn, claimer.store, worker_id=claimer.worker_id, entrypoints=sorted(sleepers))

    await retrying(mark, what="marking the worker as waiting for limited jobs", patience=PATIENCE)
    for name in sleepers - claimer.dozing:
        # What was enqueued without seeing the mark is found by looking again.
        one = claimer.names.get(name)
        if one is not None and one.empty:
            one.look_again(anyio.current_time(), claimer.poll_interval, first=True)
    claimer.dozing = sleepers
