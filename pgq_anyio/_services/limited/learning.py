"""What an answer tells: where the next jobs are, and when each name is to be asked for again."""

from __future__ import annotations

import anyio

from ..._hints import Hints
from ..._models import Job
from ..._store.limiter import LimitedClaim
from ..._strict_hints import StrictHints
from .claimer import LimitedClaimer


def learn(
    claimer: LimitedClaimer, claim: LimitedClaim, swept: set[str], took: float, *, has_room: bool, has_seats: bool
) -> bool:
    """Decide for each name when it is to be asked for again.

    :param has_room: whether the claim might have brought more jobs
    :param has_seats: whether it might have brought more that run in processes
    :return: whether others had some of the rows locked
    """
    now = anyio.current_time()
    by_name: dict[str, list[tuple[Job, int]]] = {}
    for job, seq in claim.jobs:
        by_name.setdefault(job.entrypoint, []).append((job, seq))
    contended = False
    for answer in claim.names:
        one = claimer.names.get(answer.entrypoint)
        if one is None:
            continue  # its limits are gone since
        jobs = by_name.get(one.name, [])
        if answer.locked:
            one.hints.learn(jobs)
            if isinstance(one.hints, StrictHints):
                if answer.slots_left and not answer.candidates:
                    one.hints.found_nothing()
            elif one.name in swept:
                one.hints.swept(now, took)
        contended |= one.answered(
            now,
            locked=answer.locked,
            slots_left=answer.slots_left,
            candidates=answer.candidates,
            pause=answer.pause,
            got=len(jobs),
            swept=one.name in swept or isinstance(one.hints, StrictHints),
            has_room=has_room and (has_seats or not one.in_process),
            poll_interval=claimer.poll_interval,
        )
    return contended


def learn_of_others(front: Hints, claim: LimitedClaim, sweep: float | None, *, has_room: bool) -> bool:
    """Move the hints of the names without limits.

    :param sweep: what the claim took (in seconds) if it looked at all of their queue
    :return: whether others had some of the rows locked
    """
    names = frozenset(front.entrypoints)
    jobs = [one for one in claim.jobs if one[0].entrypoint in names]
    front.learn(jobs)
    if sweep is not None:
        front.swept(anyio.current_time(), sweep)
    elif has_room:
        front.sweep_next()
    return has_room and len(jobs) < claim.open_candidates
