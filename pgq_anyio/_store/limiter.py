"""The tables ``limiter``, ``limiter_state`` and ``limiter_refund``: what names allow, and what they have in use.

Locking and counting are two statements of one transaction, in one round trip. What is in use is a list of job ids in
``limiter_state``, written by each claim; the jobs of the list that still have a row in ``running`` hold a slot. A claim
is the only way into ``running``, so no way out of it (an outcome, a rescue, a give-back) has to count anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs

from .._db import Connection, Statement, batch
from .._hints import HIGHEST, LOWEST, Lanes
from .._limits import Limits
from .._models import Job
from ._sql import Store

#: How much earlier than its token a job may start (in seconds): it makes up for wake-ups that come late.
TOLERANCE: Final = 0.01
#: For how long after a name was first limited all its running jobs are counted in full (in seconds): a claim of a
#: worker that did not know may have been under way.
COUNTING: Final = 60.0


@attrs.frozen
class Definition:
    """The limits of a name as they stand in the database."""

    entrypoint: str
    limits: Limits
    #: the name of the worker that defined them
    defined_by: str


@attrs.frozen
class KnownLimits:
    """What a worker knows of the limits of its names."""

    definitions: list[Definition]
    #: of how many changes this is the outcome, as the row of the worker counts them
    changes: int


@attrs.frozen
class NameAnswer:
    """What a claim says of one name."""

    entrypoint: str
    #: whether its lock was free; if not, nothing else is known
    locked: bool
    #: how many more jobs its concurrency limit allows now, or ``None`` if it has none
    slots_left: int | None
    #: how many queued jobs were in reach
    candidates: int
    #: seconds until its next token, or ``None`` if it has no rate
    pause: float | None


@attrs.frozen
class LimitedClaim:
    """The answer to a claim of limited names."""

    #: the jobs that are now ours, in the order in which they should start, each with its place in the queue
    jobs: list[tuple[Job, int]]
    names: list[NameAnswer]
    #: how many queued jobs of names without limits were in reach
    open_candidates: int


@attrs.frozen
class Scan:
    """Where a claim looks: per name either known lanes and the gaps between them, or all of it."""

    entrypoints: list[str]
    lanes: Lanes

    @classmethod
    def over(cls, hinted: Mapping[str, Lanes | None]) -> Scan:
        """Combine the lanes of several names; ``None`` stands for all of a name."""
        scan = cls(list(hinted), Lanes([], [], [], [], [], []))
        for entrypoint, lanes in hinted.items():
            if lanes is None:
                lanes = Lanes([], [], [], [entrypoint], [LOWEST], [HIGHEST])
            scan.lanes.entrypoints.extend(lanes.entrypoints)
            scan.lanes.priorities.extend(lanes.priorities)
            scan.lanes.seqs.extend(lanes.seqs)
            scan.lanes.gap_entrypoints.extend(lanes.gap_entrypoints)
            scan.lanes.gap_aboves.extend(lanes.gap_aboves)
            scan.lanes.gap_belows.extend(lanes.gap_belows)
        return scan

    @classmethod
    def of(cls, entrypoints: Sequence[str], lanes: Lanes | None) -> Scan:
        """Look for names that have their lanes together; ``None`` stands for all of them."""
        if lanes is None:
            lanes = Lanes([], [], [], list(entrypoints), [LOWEST] * len(entrypoints), [HIGHEST] * len(entrypoints))
        return cls(list(entrypoints), lanes)


#: Looks at nothing.
NOWHERE: Final = Scan.of([], None)


async def claim_limited(
    conn: Connection,
    store: Store,
    scan: Scan,
    *,
    worker_id: int,
    claim_no: int,
    limit: int,
    reach: int,
    unlimited: Collection[str] = (),
    in_process: Collection[str] = (),
    processes: int = 0,
    others: Scan = NOWHERE,
    limit_changes: int = 0,
) -> LimitedClaim:
    """Claim jobs of limited names, within their limits, and of others, in one order.

    :param unlimited: names of the scan that have no limits in the database
    :param in_process: names of the scan whose handlers run in processes
    :param processes: the most jobs of these, in all
    :param others: where jobs of names without limits are
    :param limit: the most jobs in all
    :param reach: rows looked at per row wanted, for names that are not serialized
    :param limit_changes: how many changes of limits this worker knows of, if there were more, nothing is taken of names
        without limits
    """
    lanes = scan.lanes
    limited = [name not in unlimited for name in scan.entrypoints]
    _, rows = await batch(
        conn,
        (store.statement("try_lock_limits"), {"entrypoints": scan.entrypoints, "limited": limited}),
        (
            store.statement("claim_limited"),
            {
                "entrypoints": scan.entrypoints,
                "limited": limited,
                "in_process": [name in in_process for name in scan.entrypoints],
                "processes": processes,
                "lane_entrypoints": lanes.entrypoints,
                "priorities": lanes.priorities,
                "seqs": lanes.seqs,
                "gap_entrypoints": lanes.gap_entrypoints,
                "gap_aboves": lanes.gap_aboves,
                "gap_belows": lanes.gap_belows,
                "open_entrypoints": others.lanes.entrypoints,
                "open_priorities": others.lanes.priorities,
                "open_seqs": others.lanes.seqs,
                "open_gap_entrypoints": others.lanes.gap_entrypoints,
                "open_gap_aboves": others.lanes.gap_aboves,
                "open_gap_belows": others.lanes.gap_belows,
                "worker_id": worker_id,
                "claim_no": claim_no,
                "limit": limit,
                "reach": reach,
                "limit_changes": limit_changes,
                "tolerance": TOLERANCE,
                "counting": COUNTING,
            },
        ),
    )
    names = [NameAnswer(row[2], row[8], row[9], row[10] or 0, row[11]) for row in rows if row[0] is None]
    jobs = [(Job(row[0], *row[2:8]), row[1]) for row in rows if row[0] is not None]
    return LimitedClaim(jobs, names, rows[0][12] if rows else 0)


async def define_limits(
    conn: Connection,
    store: Store,
    *,
    worker_id: int,
    name: str,
    entrypoints: Sequence[str],
    limits: Mapping[str, Limits],
) -> tuple[KnownLimits, list[Definition]]:
    """Put the limits of a worker that starts in place of earlier ones.

    :param name: what the worker is called
    :param entrypoints: all names that it serves
    :param limits: the limits of all names that it defines; those without any limit replace earlier limits
    :return: what stands in the database now for its names, and the earlier definitions that other live workers may have
        registered and that were replaced
    """
    calls: list[tuple[Statement, dict[str, object]]] = [
        (store.statement("lock_definitions"), {"entrypoints": [n for n, one in limits.items() if one.is_limited]}),
        (
            store.statement("define_limits"),
            {
                "entrypoints": list(limits),
                "concurrency_limits": [one.concurrency_limit for one in limits.values()],
                "rates": [one.requests_per_second for one in limits.values()],
                "serialized": [one.serialized for one in limits.values()],
                "worker_id": worker_id,
                "name": name,
            },
        ),
        (store.statement("outdate_workers"), {"worker_id": worker_id}),
        (store.statement("list_limits"), {"entrypoints": list(entrypoints), "worker_id": worker_id}),
    ]
    _, replaced, _, present = await batch(conn, *calls)
    return _known(present), [_definition(row) for row in replaced]


async def list_limits(conn: Connection, store: Store, entrypoints: Sequence[str], *, worker_id: int) -> KnownLimits:
    """Read the definitions of names: with what is known then, this worker may claim without limits."""
    return _known(await store.statement("list_limits").fetch(conn, entrypoints=list(entrypoints), worker_id=worker_id))


def _known(rows: list[tuple[Any, ...]]) -> KnownLimits:
    return KnownLimits([_definition(row[1:]) for row in rows if row[1] is not None], rows[0][0])


def _definition(row: tuple[Any, ...]) -> Definition:
    return Definition(row[0], Limits(*row[1:4]), row[4])


async def list_writers(conn: Connection, store: Store) -> frozenset[str]:
    """The transactions that have enqueued jobs, or given some back, and have not ended."""
    rows = await store.statement("list_writers").fetch(conn)
    return frozenset(rows[0][0])


async def notify_slots(conn: Connection, store: Store, entrypoints: Sequence[str]) -> None:
    """Tell workers that wait for a slot of these names to look; names without a concurrency limit are passed over."""
    await store.statement("notify_slots").fetch(conn, entrypoints=list(entrypoints))


async def set_dozing(conn: Connection, store: Store, *, worker_id: int, entrypoints: Sequence[str]) -> None:
    """Say for which limited names enqueuers should notify this worker."""
    await store.statement("set_dozing").run(conn, worker_id=worker_id, entrypoints=list(entrypoints))
