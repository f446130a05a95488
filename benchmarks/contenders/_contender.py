"""A contender as a figure sees it, and the list of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict

from .. import _peers
from .._children import Child, MeasurementError, measure
from .._server import ask, bench_database, find_postmaster, server_cpu, settle, wal_position

HERE = Path(__file__).resolve().parent
OURS = "pgq_anyio"


@attrs.frozen
class Contender:
    """A recipe for one queue with one set of settings."""

    name: str
    #: the settings that it runs with, for people
    settings: str
    command: tuple[str, ...]
    options: Mapping[str, Any]
    #: how many jobs have ended successfully, as its own tables tell
    recorded: str
    cwd: Path | None = None
    #: raises MeasurementError if it is not installed
    version: Callable[[], str] = lambda: ""

    def step(self, name: str, dsn: str, **options: Any) -> dict[str, Any]:
        """Run one step in a process of its own.

        :raises MeasurementError: if it gives no figures
        """
        return measure(self._command(name, dsn, options), cwd=self.cwd)

    def serve(self, dsn: str, **options: Any) -> Child:
        """A worker that runs until it is asked to leave."""
        return Child(self._command("serve", dsn, options), cwd=self.cwd)

    def _command(self, name: str, dsn: str, options: Mapping[str, Any]) -> list[str]:
        where = {"port": "5432", **conninfo_to_dict(dsn)}
        asked = {**self.options, **options, "step": name, "dsn": dsn, "where": where}
        return [*self.command, json.dumps(asked)]

    def count_recorded(self, dsn: str) -> int:
        """How many jobs have ended successfully."""
        with psycopg.connect(dsn, autocommit=True) as conn:
            return int(ask(conn, self.recorded))


def ours(loop: str, title: str = "", **run: Any) -> Contender:
    """pgq_anyio on one event loop, with its defaults or with options of ``PgQueuer.run``."""
    settings = ", ".join(f"{key}={value}" for key, value in run.items()) or "defaults"
    return Contender(
        name=f"{OURS} {loop}{title}",
        settings=settings,
        command=(
            sys.executable,
            "-P",
            str(HERE / "ours.py"),
        ),  # and not as a module: it has the package alone in memory
        options={"loop": loop, "run": run},
        recorded="select count(distinct job_id) from pgq_anyio.finished where status = 'successful'",
        cwd=_peers.ROOT,
    )


def with_own(what: Literal["scope", "task"], loop: str) -> Contender:
    """pgq_anyio with a scope opened for every job, in place of handing on one that nobody has cancelled; or with a task
    started for every job, which has a scope, too.
    """
    settings = {"scope": "a scope is opened for each job", "task": "own_task=True"}[what]
    one = ours(loop, f", a {what} for each job")
    return attrs.evolve(one, settings=settings, options={**one.options, f"own_{what}": True})


def pgqueuer(batch: int, loop: str = "uvloop", pool: int = 0, *, autovac: bool = False) -> Contender:
    """PgQueuer on one connection of asyncpg, or on a pool of them.

    :param autovac: whether its tables have the settings of its command ``pgq autovac``
    """
    driver = f"asyncpg, pool of {pool}" if pool else "asyncpg"
    return Contender(
        name=f"PgQueuer {loop}, batch {batch}" + (", pool" if pool else "") + (", autovac" if autovac else ""),
        settings=f"{driver}, batch_size={batch}, no limit of concurrency, no log aggregation"
        + (", pgq autovac" if autovac else ""),
        command=(str(_peers.pgqueuer_python()), "-P", str(HERE / "pgqueuer_peer.py")),
        options={"loop": loop, "batch": batch, "pool": pool, "autovac": autovac},
        recorded="select count(distinct job_id) from pgqueuer_log where status = 'successful'",
        version=_peers.pgqueuer_version,
    )


def graphile_worker() -> Contender:
    """graphile-worker, which deletes jobs that succeed: those that are left have not."""
    return Contender(
        name="graphile-worker",
        settings="concurrentJobs 24, maxPoolSize 25, localQueue 500, completeJobBatchDelay 0, failJobBatchDelay 0",
        command=("node", str(HERE / "graphile_worker_peer.mjs")),
        options={},
        recorded="""
            select last_value - (select count(*) from graphile_worker._private_jobs)
            from graphile_worker.jobs_id_seq1
        """,
        cwd=_peers.GRAPHILE_WORKER,
        version=_peers.graphile_worker_version,
    )


@attrs.frozen
class Drained:
    """One drain, seen from inside and outside."""

    figures: dict[str, Any]
    #: CPU time of worker and server, per job (in microseconds)
    worker_cpu_us: float
    server_cpu_us: float
    #: bytes of WAL per job, from the first statement of the enqueue to the last one of the worker
    wal_bytes: float
    jobs_per_second: float
    enqueued_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kept = {key: self.figures[key] for key in ("seconds", "handled", "max_rss_mb", "problems")}
        return {**attrs.asdict(self, filter=lambda attribute, _: attribute.name != "figures"), **kept}


def drain(contender: Contender, dsn: str, jobs: int, *, checkpoint: bool = True, **options: Any) -> Drained:
    """Fill a fresh database, drain it with one worker, and look whether every job was recorded.

    :param checkpoint: whether to vacuum and to write everything to disk between the two
    :raises MeasurementError: if it was not, or if a step gives no figures
    """
    with bench_database(dsn) as database:
        contender.step("fill", database, jobs=0, chunk=1)  # the tables
        settle(database)
        wal = wal_position(database)
        filled = contender.step("fill", database, jobs=jobs, chunk=10_000)
        wal = wal_position(database) - wal
        if checkpoint:
            settle(database)
        postmaster = find_postmaster(database)
        cpu, start = server_cpu(postmaster), wal_position(database)
        figures = contender.step("drain", database, jobs=jobs, whole=contender.name != "graphile-worker", **options)
        cpu, wal = server_cpu(postmaster) - cpu, wal + wal_position(database) - start
        recorded = contender.count_recorded(database)
    if figures["handled"] != jobs or recorded != jobs:
        raise MeasurementError(f"{figures['handled']} handlers ran and {recorded} successes were recorded, not {jobs}")
    return Drained(
        figures=figures,
        worker_cpu_us=figures["cpu_seconds"] / jobs * 1e6,
        server_cpu_us=cpu / jobs * 1e6,
        wal_bytes=wal / jobs,
        jobs_per_second=jobs / figures["seconds"],
        enqueued_per_second=jobs / filled["seconds"],
    )
