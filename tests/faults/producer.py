"""A producer that goes on whatever happens to its database: in a thread with an event loop of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import attrs
import psycopg

from pgq_anyio import PsycopgDriver, Queries
from tests.backends import run_on
from tests.faults.app import MIX
from tests.faults.scene import Scene

#: Jobs per call, all kinds of them.
BATCH = 10


@attrs.define(eq=False)
class Producer:
    """What a producer has done so far."""

    scene: Scene
    backend: str
    #: lasts for each job, as bytes
    payload: bytes
    #: between two calls (in seconds)
    pause: float
    #: calls that ended in an error of the connection: whether they enqueued anything is not known
    failed: int = 0
    _ended: threading.Event = attrs.field(factory=threading.Event, init=False)

    def run(self) -> None:
        """Enqueue until told to end (the thread's function)."""
        run_on(self.backend, self._enqueue)

    def end(self) -> None:
        """Let the call under way be the last one."""
        self._ended.set()

    async def _enqueue(self) -> None:
        async with PsycopgDriver(self.scene.fleet.dsn, max_size=2) as driver:
            queries = Queries(driver, schema=self.scene.fleet.schema)
            while not self._ended.is_set():
                try:
                    ids = await queries.enqueue(list(MIX[:BATCH]), self.payload)
                except (psycopg.OperationalError, OSError):
                    self.failed += 1
                    self.scene.uncertain += BATCH
                else:
                    self.scene.ids += ids
                await anyio.sleep(self.pause)


@contextmanager
def producing(scene: Scene, backend: str, *, payload: bytes = b"0.05", pause: float = 0.03) -> Iterator[Producer]:
    """A producer for the length of a block."""
    producer = Producer(scene, backend, payload, pause)
    thread = threading.Thread(target=producer.run)
    thread.start()
    try:
        yield producer
    finally:
        producer.end()
        thread.join(60)
        assert not thread.is_alive(), "the producer did not come to its end"
