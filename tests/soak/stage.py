"""The workers of the soak test, the server and the networks under them, and what is done to them in turn.

Three workers. Two of them, one of each backend, live from the beginning to the end: the server is restarted and crashes
under them, their connections are terminated, the network is cut, but their processes are left alone, so that whatever
grows in them has the whole time to do so. The third one is killed, frozen, and replaced, by each backend in turn; and
cut off for longer than its lease.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from pgq_anyio import SyncQueries
from tests.faults.scene import BACKENDS
from tests.faults.test_terminated import ROLES
from tests.soak.journal import has_started_since
from tests.soak.verdict import Fault
from tests.worker.fleet import Fleet, WorkerProcess, open_fleet, wait_until
from tests.worker.own_server import OwnServer
from tests.worker.proxy import Proxy

#: Long enough that a busy machine costs nobody its lease (in seconds).
LEASE: Final = 10.0
SLOTS: Final = 50
#: How long records are kept (in seconds).
RETENTION: Final = 180
#: Within which time all workers have to be at work again after a fault, and no job waits for more than a second (in
#: seconds): a lease, the rescue, and what a backlog takes. Held generously: nothing is lost by waiting.
BOUND: Final = 90.0
#: Kinds that never wait for anything but a slot.
_OLDEST = """
select coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0) from {schema}.queued
where entrypoint in ('work', 'thread')
"""


@attrs.define(eq=False, kw_only=True)
class Stage:
    """Where everything happens."""

    server: OwnServer
    fleet: Fleet
    journals: Path
    #: between the third worker and the server, and between the second and the server
    proxies: tuple[Proxy, Proxy]
    faults: list[Fault] = attrs.field(factory=list, init=False)
    #: jobs that were held to see who is at work
    called: list[int] = attrs.field(factory=list, init=False)
    recoveries: list[float] = attrs.field(factory=list, init=False)
    steady: dict[str, WorkerProcess] = attrs.field(factory=dict, init=False)
    _third: WorkerProcess = attrs.field(init=False)
    _turn: int = attrs.field(default=0, init=False)

    def start(self) -> None:
        """Start the three workers."""
        self.steady["asyncio"] = self._start("asyncio", self.fleet.dsn)
        self.steady["trio"] = self._start("trio", self.proxies[1].dsn)
        self._third = self._start_third()
        for worker in self.workers:
            wait_until(worker.is_registered, timeout=60, what="the worker is registered")

    @property
    def workers(self) -> list[WorkerProcess]:
        """The three."""
        return [*self.steady.values(), self._third]

    def journal(self, worker: WorkerProcess) -> Path:
        """What a worker has written."""
        return self.journals / str(worker.pid)

    def do(self, name: str) -> float:
        """Let one fault happen, and wait until everybody is at work again; how long that took (in seconds)."""
        fault = Fault(name=name, began_at=time.time())
        self.faults.append(fault)
        FAULTS[name](self, fault)
        over_at = time.time()
        self._call_roll(over_at, name)
        fault.ended_at = time.time()
        if fault.pids:  # what is rescued from a dead worker starts again when its lease is over
            fault.ended_at = max(fault.ended_at, over_at + LEASE)
        self.recoveries.append(time.time() - over_at)
        return self.recoveries[-1]

    def _call_roll(self, since: float, name: str) -> None:
        """Let jobs be held that two workers have no slots for, so that all three have to start one."""
        query = "select {schema}.enqueue('held', priority => 1000) from generate_series(1, %s)"
        ids = [row[0] for row in self.fleet.rows(query, 2 * SLOTS + 1)]
        self.called += ids

        def is_complete() -> bool:
            for worker in self.workers:
                assert worker.popen.poll() is None, f"a worker has ended with exit code {worker.popen.returncode}"
            return all(has_started_since(self.journal(worker), since) for worker in self.workers)

        wait_until(is_complete, timeout=BOUND, pause=0.05, what=f"all workers are at work after: {name}")
        with SyncQueries(self.fleet.dsn, schema=self.fleet.schema) as queries:
            queries.mark_job_as_cancelled(ids)
        what = f"no job waits for longer than a second after: {name}"
        wait_until(lambda: self.fleet.value(_OLDEST) < 1, timeout=BOUND, pause=0.1, what=what)

    def stop(self) -> None:
        """Stop the workers: they end by themselves and leave nothing behind."""
        workers = self.workers
        for worker in workers:
            worker.signal(signal.SIGTERM)
        assert [0, 0, 0] == [worker.wait(60) for worker in workers]
        assert [] == self.fleet.rows("select job_id, worker_id from {schema}.running")
        assert [] == self.fleet.rows("select name, left_at from {schema}.worker")

    def _start(self, backend: str, dsn: str) -> WorkerProcess:
        return self.fleet.start(
            backend,
            ready=False,
            dsn=dsn,
            program="tests.soak.worker",
            environment={"PGQ_TEST_JOURNALS": str(self.journals)},
            max_concurrency=SLOTS,
            batch_size=100,
            lease=LEASE,
            retention=RETENTION,
            shutdown_grace=2.0,
            block_warning=None,
        )

    def _start_third(self) -> WorkerProcess:
        self._turn += 1
        return self._start(BACKENDS[self._turn % 2], self.proxies[0].dsn)

    # -- faults --------------------------------------------------------------------------------------------------------

    def kill(self, fault: Fault) -> None:
        """SIGKILL, and another one takes its place."""
        fault.pids = frozenset([self._third.pid])
        self._third.signal(signal.SIGKILL)
        self._third.wait()
        self._third = self._start_third()

    def freeze(self, fault: Fault) -> None:
        """SIGSTOP for longer than the lease."""
        fault.pids = frozenset([self._third.pid])
        self._third.signal(signal.SIGSTOP)
        threading.Event().wait(1.3 * LEASE)  # the time that it stands still is what this is about
        self._third.signal(signal.SIGCONT)

    def cut_off(self, fault: Fault) -> None:
        """Packets of one worker vanish for longer than the lease."""
        fault.pids = frozenset([self._third.pid])
        self.proxies[0].silence()
        threading.Event().wait(1.3 * LEASE)  # the time that the network is away is what this is about
        self.proxies[0].resume()

    def replace(self, _fault: Fault) -> None:
        """A rolling replacement: SIGTERM, and the successor starts beside it."""
        before = self._third
        before.signal(signal.SIGTERM)
        self._third = self._start_third()
        assert 0 == before.wait(60)

    def terminate(self, _fault: Fault) -> None:
        """All connections of each role, one role after the other."""
        query = (
            "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = %s and application_name like 'pgq_anyio _%%'"
        )
        ended = [self.fleet.value(query, role) for role in ROLES]
        assert sum(ended) > 0

    def reset(self, _fault: Fault) -> None:
        """All connections of two workers are reset in the network."""
        assert [proxy.cut() > 0 for proxy in self.proxies] == [True, True]

    def restart(self, _fault: Fault) -> None:
        """The server is restarted in fast mode."""
        self._bring_down("fast")

    def crash(self, fault: Fault) -> None:
        """The server crashes."""
        fault.is_crash = True
        self._bring_down("immediate")

    def _bring_down(self, mode: str) -> None:
        self.server.stop("fast" if mode == "fast" else "immediate")
        threading.Event().wait(0.5)  # for how long the server is away
        self.server.start()
        self.fleet.reconnect()


FAULTS: Final[dict[str, Callable[[Stage, Fault], None]]] = {
    "a worker is killed, another one takes its place": Stage.kill,
    "the server is restarted in fast mode": Stage.restart,
    "connections are terminated, one role after the other": Stage.terminate,
    "a worker is replaced": Stage.replace,
    "the connections of two workers are reset": Stage.reset,
    "the server crashes (immediate mode)": Stage.crash,
    "a worker is stopped by SIGSTOP for longer than its lease": Stage.freeze,
    "packets of a worker vanish for longer than its lease": Stage.cut_off,
}
#: Those that take longer than a lease are left to the long form.
QUICK: Final = tuple(FAULTS)[:6]


@contextmanager
def open_stage(server: OwnServer, schema: str, journals: Path, proxies: tuple[Proxy, Proxy]) -> Iterator[Stage]:
    """A stage on a running server with migrated tables; whatever was started has ended afterwards."""
    with open_fleet(server.dsn, schema) as fleet:
        try:
            yield Stage(server=server, fleet=fleet, journals=journals, proxies=proxies)
        finally:
            server.start()
            if fleet.connection.broken or fleet.connection.closed:
                fleet.reconnect()


def finish_rest(fleet: Fleet, timeout: float) -> None:
    """Cancel what only a cancel can end, and wait until nothing is left."""
    left = "select (select count(*) from {schema}.%s)"
    query = " union all ".join(left % table for table in ("queued", "deferred", "running"))

    def is_empty() -> bool:
        cancel(fleet)
        return not any(row[0] for row in fleet.rows(query))

    wait_until(is_empty, timeout=timeout, pause=0.25, what="all jobs have ended")


def cancel(fleet: Fleet) -> None:
    """Cancel the jobs that wait for it: those of calls whose answer was lost are known to nobody else."""
    with SyncQueries(fleet.dsn, schema=fleet.schema) as queries:
        queries.mark_job_as_cancelled(entrypoint="held")
