"""One claim for several limited names, which takes jobs of the other names along."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import anyio
from psycopg import OperationalError

from ..._hints import Hints
from ..._limited_name import LimitedName
from ..._store.limiter import NOWHERE, LimitedClaim, Scan, claim_limited
from .claimer import LimitedClaimer
from .learning import learn, learn_of_others

#: How far a claim reaches beyond rows that others have locked.
MAX_REACH: Final = 8
#: Pause before a claim is tried again whose rows were all locked by others (in seconds, jittered).
CONTENDED_PAUSE: Final = 0.002


async def claim_limited_once(claimer: LimitedClaimer, due: Sequence[LimitedName]) -> int:
    """Make one claim for these names and start what it brings.

    :return: how many jobs it brought, of any kind
    :raises psycopg.OperationalError: if the claim was not answered in time; its number is then remembered as lost
    """
    number: int | None = None
    limit = 0
    claim: LimitedClaim | None = None
    passed_over = False
    try:
        with claimer.shield():
            conn = await claimer.line.connection()
            if claimer.line.opened != claimer.connection_no:
                claimer.connection_no = claimer.line.opened
                claimer.forget()
                claimer.on_connection()
            claimer.holdings.take_turn()
            limit = min(claimer.holdings.free, 1 if claimer.is_wary else claimer.batch_size)
            if limit < 1:
                return 0
            number = claimer.holdings.open_claim(limit)
            for one in due:
                one.asked()
            started_at = anyio.current_time()
            claimer.processes.look_ahead(started_at)
            seats = claimer.seats_for(due)
            hinted = {
                one.name: one.hints.lanes(started_at) if isinstance(one.hints, Hints) else one.hints.lanes()
                for one in due
            }
            # Somebody who holds that many rows is not waited for.
            front = claimer.front() if claimer.reach < MAX_REACH else None
            lanes = None if front is None else front.lanes(started_at)
            others = NOWHERE if front is None else Scan.of(front.entrypoints, lanes)
            claim = await claim_limited(
                conn,
                claimer.store,
                Scan.over(hinted),
                worker_id=claimer.worker_id,
                claim_no=number,
                limit=limit,
                reach=claimer.reach,
                unlimited={one.name for one in due if not one.is_limited},
                in_process=claimer.in_process,
                processes=seats,
                others=others,
                limit_changes=claimer.limit_changes,
            )
            claimer.start_jobs([job for job, _ in claim.jobs], number)
            has_room = len(claim.jobs) < limit
            has_seats = sum(job.entrypoint in claimer.in_process for job, _ in claim.jobs) < seats
            swept = {name for name, lanes in hinted.items() if lanes is None}
            took = anyio.current_time() - started_at
            if front is not None:
                passed_over = learn_of_others(front, claim, None if lanes else took, has_room=has_room)
            has_room = has_room and not passed_over
            contended = learn(claimer, claim, swept, took, has_room=has_room, has_seats=has_seats)
            contended |= passed_over
            claimer.reach = min(claimer.reach * 2, MAX_REACH) if contended else 1
    finally:
        if number is not None:
            if claim is None:
                for one in due:
                    one.unanswered()
                claimer.holdings.lose_claim(number)
            else:
                claimer.holdings.resolve_claim(number)
        claimer.holdings.end_turn(next_one=claim is not None and bool(claimer.due()))
    claimer.on_answer(claim is not None)
    claimer.is_wary = claim is None
    if claim is None:
        claimer.line.close()
        raise OperationalError("the claim was not answered in time")
    if passed_over and not claim.jobs:
        await anyio.sleep(CONTENDED_PAUSE * random.random())  # noqa: S311  (jitter, not a secret)
    return len(claim.jobs)
