"""Outcomes on their way: batches are bounded by number and by size."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from pgq_anyio import Job, JobId
from pgq_anyio._endings import UNIT, Endings
from pgq_anyio._lifecycle import SUCCEEDED, Again, ErrorText, Failed, Outcome
from pgq_anyio._models import Held

pytestmark = pytest.mark.anyio


def held(number: int, payload: bytes | None = None) -> Held:
    return Held(Job(JobId(number), "fetch", payload, 0, 1, 0, datetime.now(UTC)), 1, 1)


def failed(size: int) -> Outcome:
    return Failed(ErrorText("ValueError", "", "x" * size))


async def test_batches_are_bounded_by_number_and_size() -> None:
    """All outcomes, in order, each once; a batch of large ones is shorter, and never empty."""
    endings = Endings()
    outcomes = [SUCCEEDED, failed(3 * UNIT), SUCCEEDED, failed(20 * UNIT), failed(UNIT - 1), SUCCEEDED, SUCCEEDED]
    for number, outcome in enumerate(outcomes):
        endings.put(held(number), outcome)
    sizes = []
    with anyio.fail_after(5):
        while endings.unstored:
            batch = await endings.take(5)
            sizes.append([one.job.id for one, _ in batch if isinstance(one, Held)])
            endings.stored(batch)
    assert [[0, 1], [2], [3], [4, 5, 6]] == sizes
    assert 0 == endings.weight


async def test_what_waits_is_counted_by_size() -> None:
    """Payloads, messages and tracebacks count, until they are stored."""
    endings = Endings()
    endings.put(held(1, b"x" * (2 * UNIT)), SUCCEEDED)
    assert (1, 3) == (endings.unstored, endings.weight)
    endings.put(held(2), Again(0.0, counted=True, error=ErrorText("E", "m" * UNIT, "t" * UNIT)))
    endings.put(held(3), SUCCEEDED)
    assert (3, 7) == (endings.unstored, endings.weight)
    batch = await endings.take(1)
    assert (3, 7) == (endings.unstored, endings.weight)
    endings.stored(batch)
    assert (2, 4) == (endings.unstored, endings.weight)
    endings.stored(await endings.take(100))
    assert (0, 0) == (endings.unstored, endings.weight)
    endings.close()
    assert [] == await endings.take(100)
