"""Jobs of names with and without limits start in one order, whichever claim brings them."""

from __future__ import annotations

import anyio
import pytest
from psycopg import sql

from pgq_anyio import Job, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio.testing import running_worker
from tests.worker.limited_fleet import wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.promise(5)]

FREE, LIMITED = "free", "limited"


class Gate:
    """Handlers of both kinds write down who starts; those of the priorities that are shut stay until these open."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self._open = {priority: anyio.Event() for priority in (5000, 1000, 0)}

    def register(self, app: PgQueuer, *, limit: int = 100) -> None:
        app.entrypoint(FREE)(self._handle)
        app.entrypoint(LIMITED, concurrency_limit=limit)(self._handle)

    async def _handle(self, job: Job) -> None:
        self.started.append((job.entrypoint, job.priority))
        await self._open[job.priority].wait()

    async def wait_started(self, number: int) -> None:
        await wait_for(lambda: len(self.started) >= number)

    def open(self, priority: int) -> None:
        self._open[priority].set()


@pytest.fixture(params=[(FREE, LIMITED), (LIMITED, FREE)], ids=["free first", "limited first"])
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The name whose jobs have the higher priority, and the other one."""
    names: tuple[str, str] = request.param
    return names


@pytest.mark.parametrize("room", [1, 3])
async def test_one_order_in_a_backlog(app: PgQueuer, queries: Queries, room: int) -> None:
    """By priority, and among equals by age, from the first job to the last."""
    order: list[int] = []

    async def handler(job: Job) -> None:
        order.append(job.id)

    app.entrypoint(FREE)(handler)
    app.entrypoint(LIMITED, concurrency_limit=100)(handler)
    jobs = [((FREE, LIMITED)[number * 5 % 7 % 2], number * 11 % 13 % 4) for number in range(120)]
    ids = await queries.enqueue([name for name, _ in jobs], [None] * 120, [priority for _, priority in jobs])
    ranked = sorted(zip(ids, jobs, strict=True), key=lambda one: (-one[1][1], one[0]))
    await app.run(mode="drain", max_concurrency=room)
    assert [job_id for job_id, _ in ranked] == order


async def test_no_kind_passes_a_higher_priority(app: PgQueuer, queries: Queries, kinds: tuple[str, str]) -> None:
    """What comes while all slots are taken by long jobs waits in one order for them, though only one is freed."""
    high, low = kinds
    gate = Gate()
    gate.register(app)
    await queries.enqueue([FREE, LIMITED], [None] * 2, [5000, 1000])
    async with running_worker(app, max_concurrency=2, shutdown_grace=0):
        await gate.wait_started(2)
        await queries.enqueue([low] * 5 + [high] * 5, [None] * 10, [0] * 5 + [1000] * 5)
        gate.open(5000)
        await gate.wait_started(3)
        assert (high, 1000) == gate.started[2]
        gate.open(1000)
        gate.open(0)
        await gate.wait_started(12)
    assert [(high, 1000)] * 5 + [(low, 0)] * 5 == gate.started[2:]


async def test_two_workers_take_the_higher_priority(dsn: str, schema: str, queries: Queries) -> None:
    """While jobs of a higher priority wait, no worker takes a limited one, also when both look at the same time."""
    gate = Gate()
    apps = [PgQueuer(dsn, schema=schema) for _ in range(2)]
    for app in apps:
        gate.register(app)
    await queries.enqueue([FREE, LIMITED] * 3, [None] * 6, [5000] * 6)
    async with (
        running_worker(apps[0], max_concurrency=3, shutdown_grace=0),
        running_worker(apps[1], max_concurrency=3, shutdown_grace=0),
    ):
        await gate.wait_started(6)
        await queries.enqueue([LIMITED] * 6 + [FREE] * 6, [None] * 12, [0] * 6 + [1000] * 6)
        gate.open(5000)
        await gate.wait_started(12)
        assert [(FREE, 1000)] * 6 == gate.started[6:]
        gate.open(1000)
        await gate.wait_started(18)
    assert [(LIMITED, 0)] * 6 == gate.started[12:]


@pytest.mark.promise(19)
async def test_a_full_limit_holds_nothing_back(app: PgQueuer, queries: Queries) -> None:
    """However high the priority of what may not start: the others take all other slots, and their own order holds."""
    gate = Gate()
    gate.register(app, limit=1)
    await queries.enqueue([LIMITED] * 5 + [FREE] * 6, [None] * 11, [5000] * 5 + [0] * 3 + [1000] * 3)
    async with running_worker(app, max_concurrency=4, shutdown_grace=0):
        await gate.wait_started(4)
        assert [(LIMITED, 5000)] + [(FREE, 1000)] * 3 == gate.started
        gate.open(1000)
        await gate.wait_started(7)
        assert [(FREE, 0)] * 3 == gate.started[4:]


@pytest.mark.promise(19)
async def test_claims_of_limited_names_that_hang_hold_up_nothing(
    app: PgQueuer, queries: Queries, conn: Connection, schema: str
) -> None:
    """While nobody can claim a limited job, the others run; afterwards the limited ones do."""
    gate = Gate()
    gate.register(app)
    for priority in (1000, 0):
        gate.open(priority)
    async with running_worker(app, max_concurrency=4, shutdown_grace=0, lease=5):
        async with conn.transaction():
            await conn.execute(sql.SQL("lock table {}.limiter_state").format(sql.Identifier(schema)))
            await queries.enqueue([LIMITED] * 3 + [FREE] * 20, [None] * 23, [1000] * 3 + [0] * 20)
            await gate.wait_started(20)
            assert [(FREE, 0)] * 20 == gate.started
        await gate.wait_started(23)
    assert [(LIMITED, 1000)] * 3 == gate.started[20:]
