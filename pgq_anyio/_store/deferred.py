"""The table ``deferred``: jobs whose time has not come."""

from __future__ import annotations

import attrs

from .._db import Connection
from ._sql import Store


@attrs.frozen
class Promotion:
    """The answer to a promotion."""

    #: how many jobs became queued
    moved: int
    entrypoints: list[str]
    #: seconds until the next deferred job is due, or ``None`` if there is none
    next_due: float | None


async def promote_due(conn: Connection, store: Store, *, limit: int) -> Promotion:
    """Move up to ``limit`` due jobs into ``queued``."""
    rows = await store.statement("promote_due").fetch(conn, limit=limit)
    moved, entrypoints, next_due, _ = rows[0]
    return Promotion(moved, entrypoints, next_due)
