"""The worker row: how a term begins and ends in the database."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Final

import anyio
import attrs

from .._db import retrying
from .._db.line import Line
from .._lease import Lease
from .._services.rescuer import DEFAULT_MAX_CRASHES
from .._store.limiter import KnownLimits, define_limits
from .._store.worker import hand_over, leave, mark_left, register_worker
from .worker import Worker

logger = logging.getLogger("pgq_anyio.worker")

#: How long the database waits before it gives the jobs of the handlers that are left behind to others (in seconds): by
#: then this process is gone, and its children are, too.
HANDOVER: Final = 0.3


@attrs.define(eq=False, kw_only=True)
class Registration:
    """One registration, under an id that is used once."""

    worker: Worker
    worker_id: int
    line: Line
    lease: Lease
    #: given the limits that hold
    on_limits: Callable[[KnownLimits], None]
    _name: str = attrs.field(factory=lambda: f"{socket.gethostname()}:{os.getpid()}", init=False)

    async def register(self) -> None:
        """Become a worker. The lease counts from before the request.

        An interrupted request is cancelled on the server and waited for: one that was left to itself could be committed
        after our farewell, and nobody would remove its row before the lease is over.
        """
        patience = self.lease.duration
        await retrying(self._register_once, what="registering the worker", patience=patience)
        await retrying(self._define_limits_once, what="defining limits", patience=patience)
        # From now on, what is not answered is tried on another connection, without a second's delay.
        self.line.limit_cleanup(0.0)

    async def _register_once(self) -> None:
        asked_at = anyio.current_time()
        entrypoints = self.worker.registry.entrypoints
        await register_worker(
            await self.line.connection(),
            self.worker.store,
            worker_id=self.worker_id,
            name=self._name,
            entrypoints=tuple(entrypoints),
            max_crashes=[entrypoint.max_crashes for entrypoint in entrypoints.values()],
            lease=self.lease.duration,
        )
        self.lease.renew(asked_at)

    async def _define_limits_once(self) -> None:
        """Put our limits into the database, when the worker starts, and read what holds now."""
        entrypoints = self.worker.registry.entrypoints
        ours = {} if self.worker.has_defined else {name: one.limits for name, one in entrypoints.items()}
        known, replaced = await define_limits(
            await self.line.connection(),
            self.worker.store,
            worker_id=self.worker_id,
            name=self._name,
            entrypoints=tuple(entrypoints),
            limits=ours,
        )
        self.worker.has_defined = True
        for one in replaced:
            logger.warning(
                "the entrypoint %r is registered with %s here (%s), and with %s by %s, which still runs; the database "
                "keeps the last definition, ours",
                one.entrypoint,
                ours[one.entrypoint],
                self._name,
                one.limits,
                one.defined_by,
            )
        self.on_limits(known)

    async def leave(self) -> None:
        """Give up the registration, and whatever the database still holds for it."""
        await leave(await self.line.connection(), self.worker.store, worker_id=self.worker_id)

    async def mark_left(self) -> None:
        """Say that the worker goes although handlers still run; their jobs are given back when this process is gone."""
        conn, store = await self.line.connection(), self.worker.store
        await mark_left(conn, store, worker_id=self.worker_id)
        hand_over(conn, store, worker_id=self.worker_id, after=HANDOVER, max_crashes=DEFAULT_MAX_CRASHES)
