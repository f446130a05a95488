"""A job's context leaves memory with its job."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

import pytest
from anyio import CancelScope, CapacityLimiter

from pgq_anyio import Context, Job, JobId
from pgq_anyio._context import ExecutionTools, OuterScopes

pytestmark = pytest.mark.anyio


async def test_a_context_is_part_of_no_cycle() -> None:
    """Its payload goes with the last reference, and not when cycles are looked for, which may be gigabytes later. What
    a handler has kept of it can still be asked.
    """
    context = Context(
        job=Job(JobId(1), "fetch", b"x", 0, 1, 0, datetime.now(UTC)),
        schedule=None,
        resources=None,
        tools=ExecutionTools(CapacityLimiter(1), None, 5.0),
        outer=OuterScopes(CancelScope(), CancelScope()),
    )
    kept, seen = context.cancellation, weakref.ref(context)
    gc.disable()
    try:
        del context
        assert seen() is None
        assert not kept.cancel_called
    finally:
        gc.enable()
