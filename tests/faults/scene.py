"""The harness of a fault scenario: start workers, enqueue, inject the fault, and see what has become of it all.

::

    scene.start("asyncio")                  # worker processes, of both backends
    scene.load(1000)                        # jobs of several kinds
    ...                                     # the fault, as often as wanted; each is told by scene.hit(...)
    scene.recover()                         # every worker is at work within the bound
    scene.finish()                          # all jobs end, no slot is lost, the workers stop; every check; the row

``finish`` compares the records of the jobs with what their handlers logged:

- no job is lost: each has one record, and a success or failure that is recorded has happened
- no job runs twice, but where the contract allows it. A run that is followed by another one must have been told to end
  (the log says so), or belong to a worker that was hit (``hit`` names it), or be there when the server was
  (``hit_server``), which may have forgotten it
- the limit of the fleet held, unless the server may have forgotten even what workers had waited for
- nothing is left: no claim, no worker, no job that waits
"""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import attrs

from pgq_anyio import SyncQueries
from tests.faults.app import LIMIT, MIX
from tests.faults.job_log import JobLog, LoggedRun, open_job_log
from tests.faults.rows import Row
from tests.worker.fleet import Fleet, WorkerProcess, open_fleet, wait_until

PROGRAM: Final = "tests.faults.app"
#: Jobs that a worker of a scenario runs at once, unless it is told otherwise.
SLOTS: Final = 10
#: The lease of a scenario's workers (in seconds), unless they are told otherwise: the shortest.
LEASE: Final = 2.0
#: What the workers of a scene run on, in turn: uvloop is what the command line takes where it is installed.
BACKENDS: Final = ("uvloop", "trio")
#: How long the jobs of a scenario may take to end once the faults are over (in seconds).
PATIENCE: Final = 120.0
#: How long it may take a busy machine to store the outcome of a handler that has ended.
STORING: Final = timedelta(seconds=5)

#: What is gone after a fault of the server, each with what comes before it: claims of names without a limit, which are
#: not waited for; outcomes that could not be stored before a lease was over; commits that were waited for.
Loss = Literal["claims", "outcomes", "commits"]


@attrs.define
class ServerHit:
    """One fault of the server; times are the log's."""

    loses: Loss
    began_at: datetime
    over_at: datetime | None = None

    def explains(self, run: LoggedRun) -> bool:
        """Whether a run may have been forgotten: it was under way, or its outcome was."""
        if self.loses == "claims" and run.entrypoint == "limited":
            return False
        is_before = run.ended_at is not None and run.ended_at < self.began_at - STORING
        return not is_before and (self.over_at is None or run.started_at < self.over_at)


@attrs.define(eq=False, kw_only=True)
class Scene:
    """One scenario."""

    number: int
    title: str
    #: why the contract allows that jobs run twice here; empty if it does not
    allowed: str
    #: within which time all workers have to be at work after a fault (in seconds)
    bound: float
    fleet: Fleet
    log: JobLog
    #: the jobs that have to end
    ids: list[int] = attrs.field(factory=list, init=False)
    #: how many more there may be: enqueued by calls whose answer was lost
    uncertain: int = attrs.field(default=0, init=False)
    times: int = attrs.field(default=0, init=False)
    recoveries: list[float] = attrs.field(factory=list, init=False)
    _slots: dict[int, int] = attrs.field(factory=dict, init=False)
    #: the processes of workers that were hit
    _hit: set[int] = attrs.field(factory=set, init=False)
    _server_hits: list[ServerHit] = attrs.field(factory=list, init=False)

    # -- workers and jobs ----------------------------------------------------------------------------------------------

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that run."""
        return [worker for worker in self.fleet.workers if worker.popen.poll() is None]

    def start(
        self, backend: str, *, ready: bool = True, environment: Mapping[str, str] | None = None, **options: Any
    ) -> WorkerProcess:
        """Start a worker; by default return once it is registered."""
        options = {"max_concurrency": SLOTS, "batch_size": SLOTS, "lease": LEASE, **options}
        ours = {"PGQ_TEST_LOG_DSN": self.log.dsn, "PGQ_TEST_LOG_TABLE": self.log.table, **(environment or {})}
        options.setdefault("program", PROGRAM)
        worker = self.fleet.start(backend, ready=ready, environment=ours, **options)
        self._slots[worker.pid] = options["max_concurrency"]
        return worker

    def start_many(self, number: int, **options: Any) -> list[WorkerProcess]:
        """Start workers of both backends, one beside the other."""
        backends = itertools.islice(itertools.cycle((*BACKENDS, "asyncio")), number)
        workers = [self.start(backend, ready=False, **options) for backend in backends]
        self.wait_registered(*workers)
        return workers

    def wait_registered(self, *workers: WorkerProcess) -> None:
        """Wait until these workers are registered."""
        for worker in workers:
            wait_until(worker.is_registered, timeout=30, what="the worker is registered")

    def load(
        self, number: int, *, payload: bytes | None = None, priority: int = 0, mix: Sequence[str] = MIX
    ) -> list[int]:
        """Enqueue jobs of all kinds, in turn."""
        query = (
            "select {schema}.enqueue((%s::text[])[1 + (i - 1) %% cardinality(%s::text[])], %s, %s)"
            " from generate_series(1, %s) as i"
        )
        ids = [row[0] for row in self.fleet.rows(query, list(mix), list(mix), payload, priority, number)]
        self.ids += ids
        return ids

    def ended(self) -> int:
        """How many records there are."""
        number: int = self.fleet.value("select count(*) from {schema}.finished")
        return number

    def wait_ended(self, number: int, *, timeout: float = PATIENCE) -> None:
        """Wait until so many jobs have ended."""
        wait_until(lambda: self.ended() >= number, timeout=timeout, pause=0.1, what=f"{number} jobs have ended")

    def wait_busy(self, worker: WorkerProcess) -> None:
        """Wait until a worker has just started a job, so that a fault that comes now finds it running."""
        wait_until(lambda: worker.pid in self.log.starters(), timeout=PATIENCE, pause=0.01, what="a job has started")

    # -- faults --------------------------------------------------------------------------------------------------------

    def hit(self, *workers: WorkerProcess) -> None:
        """A fault is about to hit these workers: what they were running may run again. None: it must not."""
        self.times += 1
        self._hit |= {worker.pid for worker in workers}

    def hit_server(self, *, loses: Loss = "claims") -> None:
        """The server is about to forget something: what runs until the next ``recover`` may run again."""
        self.times += 1
        self._server_hits.append(ServerHit(loses, self.log.now()))

    def recover(self) -> None:
        """A fault is over: wait until the slots of every worker are in use, but those that ``limited`` jobs may take,
        and nothing is claimed by workers that are gone; then until each holder of a slot has been cancelled.
        """
        self.recoveries.append(self._call_roll(spared=LIMIT))
        for hit in self._server_hits:
            hit.over_at = hit.over_at or self.log.now()

    def _call_roll(self, *, spared: int) -> float:
        """Let every slot be held but ``spared`` ones; how long that took (in seconds)."""
        began_at = time.monotonic()
        wanted = Counter({worker.pid: self._slots[worker.pid] for worker in self.workers})
        query = "select {schema}.enqueue('hold', priority => 1000) from generate_series(1, %s)"
        ids = [row[0] for row in self.fleet.rows(query, wanted.total())]
        self.ids += ids

        def is_complete() -> bool:
            missing = wanted - Counter(self.log.holders())
            return missing.total() <= spared

        try:
            wait_until(is_complete, timeout=self.bound, pause=0.02, what="every slot of every worker is in use")
        except AssertionError as error:
            error.add_note(f"in use: {Counter(self.log.holders())}, wanted: {wanted}")
            raise
        wait_until(lambda: not self._claimed_by_the_dead(), timeout=self.bound, what="jobs of dead workers are rescued")
        took = time.monotonic() - began_at
        with SyncQueries(self.fleet.dsn, schema=self.fleet.schema) as queries:
            queries.mark_job_as_cancelled(ids)
        wait_until(lambda: not self.log.holders(), timeout=self.bound, what="every holder has been cancelled")
        return took

    def _claimed_by_the_dead(self) -> int:
        """How many jobs are claimed by workers that do not run."""
        alive = [f"%:{worker.pid}" for worker in self.workers]
        number: int = self.fleet.value(
            "select count(*) from {schema}.running r where not exists (select from {schema}.worker w"
            " where w.worker_id = r.worker_id and w.left_at is null and w.name like any (%s))",
            alive,
        )
        return number

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, *, timeout: float = PATIENCE) -> Row:
        """Wait for all jobs, stop the workers, check everything, and save the row."""
        pending = (
            "select exists (select from {schema}.queued) or exists (select from {schema}.deferred)"
            " or exists (select from {schema}.running)"
        )
        wait_until(lambda: not self.fleet.value(pending), timeout=timeout, pause=0.1, what="all jobs have ended")
        self._call_roll(spared=0)
        wait_until(lambda: not self.fleet.value(pending), timeout=timeout, pause=0.1, what="the roll call has ended")
        self.stop()
        row = self.judge()
        row.save()
        return row

    def stop(self) -> None:
        """Stop the workers: they end by themselves and leave nothing behind."""
        workers = self.workers
        for worker in workers:
            worker.signal(signal.SIGTERM)
        assert [0] * len(workers) == [worker.wait(40) for worker in workers]
        assert [] == self.fleet.rows("select job_id, worker_id from {schema}.running")
        assert [] == self.fleet.rows("select name, left_at from {schema}.worker")

    def judge(self) -> Row:
        """Check the records against the log."""
        runs: defaultdict[int, list[LoggedRun]] = defaultdict(list)
        for run in self.log.runs():
            runs[run.job_id].append(run)
        records = self.fleet.rows("select job_id, entrypoint, status, error_type from {schema}.finished")
        recorded = [record[0] for record in records]
        assert len(recorded) == len(set(recorded)), "a job has two records"
        lost = set(self.ids) - set(recorded)
        assert not lost, f"lost: {sorted(lost)[:20]}"
        assert len(set(recorded) - set(self.ids)) <= self.uncertain, "jobs that nobody has enqueued"
        unfounded = [record for record in records if not _is_founded(record, runs[record[0]])]
        assert not unfounded, f"recorded otherwise than logged: {unfounded[:20]}"
        self._check_repeats(runs)
        if not any(hit.loses == "commits" for hit in self._server_hits):
            self._check_limit(runs)
        return Row(
            number=self.number,
            title=self.title,
            times=self.times,
            jobs=len(recorded),
            lost=len(lost),
            doubled=sum(sum(run.is_through for run in one) > 1 for one in runs.values()),
            allowed=self.allowed,
            interrupted=sum(
                not run.is_through for one in runs.values() for run in one[:-1] if run.entrypoint != "hold"
            ),
            recovered=max(self.recoveries, default=0.0),
            bound=self.bound,
        )

    def _check_repeats(self, runs: dict[int, list[LoggedRun]]) -> None:
        for one in runs.values():
            # Also a later run: a thread that was about to start when its worker was frozen does so when that wakes up.
            is_hit = any(run.pid in self._hit for run in one)
            for run in one[:-1]:
                told = run.event is not None and run.event.startswith("cancelled:")
                is_forgotten = any(hit.explains(run) for hit in self._server_hits)
                assert told or is_hit or is_forgotten, f"ran again without a reason: {one}"
                assert not run.is_through or self.allowed, f"ran twice, which the contract does not allow here: {one}"

    def _check_limit(self, runs: dict[int, list[LoggedRun]]) -> None:
        """Of runs whose end is known, and whose worker was not hit: the others ended at a time that nobody logged."""
        changes = []
        for run in itertools.chain.from_iterable(runs.values()):
            if run.entrypoint == "limited" and run.ended_at is not None and run.pid not in self._hit:
                changes += [(run.started_at, 1), (run.ended_at, -1)]
        at_once = list(itertools.accumulate(change for _, change in sorted(changes)))
        assert max(at_once, default=0) <= LIMIT, f"more ran at once than the limit of {LIMIT}"


def _is_founded(record: tuple[Any, ...], runs: list[LoggedRun]) -> bool:
    """Whether what is recorded of a job is what its handler logged."""
    entrypoint, status, error_type = str(record[1]), str(record[2]), str(record[3])
    events = {run.event for run in runs}
    match status:
        case "successful":
            return entrypoint != "fail" and "end" in events
        case "failed":
            return entrypoint == "fail" and "failed" in events and "IntendedError" in error_type
        case _:
            return entrypoint == "hold"


@contextmanager
def open_scene(
    dsn: str, schema: str, log_dsn: str, *, number: int, title: str, bound: float, allowed: str = ""
) -> Iterator[Scene]:
    """A scenario on a migrated schema; whatever it started has ended afterwards.

    :param dsn: the database of the queue, which must be there again in the end
    :param log_dsn: a database that the scenario does not touch
    """
    with open_job_log(log_dsn, schema + "_jobs") as log, open_fleet(dsn, schema) as fleet:
        yield Scene(number=number, title=title, bound=bound, allowed=allowed, fleet=fleet, log=log)
