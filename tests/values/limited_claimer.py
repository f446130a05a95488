"""A claimer of limited names whose answers are made up."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import anyio
import attrs

from pgq_anyio._doorbell import Doorbell
from pgq_anyio._holdings import Holdings
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._process_room import ProcessRoom
from pgq_anyio._services.limited import LimitedClaimer
from pgq_anyio._stop import Stop
from pgq_anyio._store.limiter import Definition, KnownLimits

POLL = 30.0
LIMITS = Limits(concurrency_limit=1)


def nothing(*_: object) -> None:
    """Be a callback that nobody needs here."""


class Line:
    """Connections that nobody uses."""

    opened = 1

    async def connection(self) -> None:
        await anyio.lowlevel.checkpoint()


@attrs.define
class Plan:
    """When the other claimer looks."""

    at: float = -math.inf


def make_claimer(
    names: Collection[str],
    plan: Plan | None = None,
    *,
    in_process: Collection[str] = (),
    unlimited: Collection[str] = (),
    processes: int = 0,
    max_concurrency: int = 10,
) -> LimitedClaimer:
    """A claimer whose names all rest since a poll interval."""
    plan = plan or Plan()
    line: Any = Line()
    absent: Any = None  # nothing is asked of the database
    registered = {name: UNLIMITED if name in unlimited else LIMITS for name in names}
    room = ProcessRoom(nothing)
    room.size = processes
    claimer = LimitedClaimer(
        line=line,
        store=absent,
        worker_id=1,
        registered=registered,
        in_process=frozenset(in_process),
        processes=room,
        holdings=Holdings(
            worker_id=1,
            max_concurrency=max_concurrency,
            cancel_grace=1.0,
            unstored=lambda: 0,
            on_room=nothing,
            on_lost_claim=nothing,
            on_cancelled=nothing,
        ),
        shield=anyio.CancelScope,
        on_answer=nothing,
        front=lambda: None,
        on_connection=nothing,
        start_jobs=nothing,
        on_names=nothing,
        next_look=lambda: plan.at,
        on_idle=nothing,
        stop=Stop(),
        room=Doorbell(),
        batch_size=100,
        poll_interval=POLL,
    )
    claimer.define(KnownLimits([Definition(name, limits, "worker") for name, limits in registered.items()], 0))
    for name in claimer.names.values():
        name.resting, name.ready_at = True, anyio.current_time()
    return claimer


def due(claimer: LimitedClaimer) -> list[str]:
    """The names that it would ask for."""
    return [one.name for one in claimer.due()]
