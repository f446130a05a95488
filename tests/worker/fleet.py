"""Worker processes for tests, and what can be seen of them from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import psycopg
import pytest
from psycopg import sql

ROOT = Path(__file__).parents[2]
#: Where several workers meet: those of one fleet take uvloop and asyncio in turn.
BACKENDS = pytest.mark.parametrize("backend", ["uvloop+asyncio", "trio"])
#: Where all of a test runs on one of them.
EVERY_LOOP = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])


def wait_until(fact: Callable[[], Any], *, timeout: float = 45.0, what: str = "", pause: float = 0.01) -> Any:
    """Look at a fact until it is true; its value. A bound, not a hope: without the fact the test fails.

    :param pause: between two looks (in seconds), longer where a look costs something
    """
    deadline = time.monotonic() + timeout
    while not (value := fact()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or fact}"
        time.sleep(pause)  # the fact lies in the database or in another process: it can only be looked at
    return value


@attrs.define(eq=False)
class WorkerProcess:
    """One worker in a process of its own."""

    popen: subprocess.Popen[bytes]
    fleet: Fleet

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = 45.0) -> int:
        """Wait for the end; the exit code."""
        return self.popen.wait(timeout)

    def is_registered(self) -> bool:
        assert self.popen.poll() is None, f"the worker has ended with exit code {self.popen.returncode}"
        return bool(
            self.fleet.rows("select 1 from {schema}.worker where name like %s and left_at is null", f"%:{self.pid}")
        )

    def end(self) -> None:
        """End it whatever state it is in."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(20)


@attrs.define(eq=False)
class Fleet:
    """The workers of one test, on one schema."""

    dsn: str
    schema: str
    connection: psycopg.Connection[tuple[Any, ...]]
    workers: list[WorkerProcess] = attrs.field(factory=list)

    def start(
        self,
        backend: str,
        *,
        ready: bool = True,
        dsn: str | None = None,
        program: str = "tests.worker.process",
        environment: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> WorkerProcess:
        """Start a worker; by default return once it is registered.

        :param backend: ``asyncio``, ``uvloop`` or ``trio``; of several, joined by ``+``, each worker takes the next one
        :param program: the module to run, for an app of its own
        :param environment: what is added to the environment
        """
        variables = {
            **os.environ,
            **environment,
            "PGQ_TEST_DSN": self.dsn,
            "PGQ_TEST_SCHEMA": self.schema,
            "PGQ_TEST_WORKER_DSN": dsn or self.dsn,
        }
        several = backend.split("+")
        popen = subprocess.Popen(
            [sys.executable, "-m", program, several[len(self.workers) % len(several)], json.dumps(options)],
            cwd=ROOT,
            env=variables,
        )
        worker = WorkerProcess(popen, self)
        self.workers.append(worker)
        if ready:
            wait_until(worker.is_registered, what="the worker is registered")
        return worker

    def reconnect(self) -> None:
        """Look at the database through a new connection: the server has been restarted."""
        self.connection.close()
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a query; ``{schema}`` and ``{log}`` stand for the schema and the table of the handlers' entries."""
        text = sql.SQL(query).format(schema=sql.Identifier(self.schema), log=sql.Identifier(self.schema + "_log"))
        cursor = self.connection.execute(text, parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    def value(self, query: str, *parameters: Any) -> Any:
        """The one value of a query."""
        ((value,),) = self.rows(query, *parameters)
        return value

    def enqueue(self, entrypoint: str, payload: bytes | None = None, *, times: int = 1) -> list[int]:
        """Enqueue by plain SQL."""
        return [
            row[0]
            for row in self.rows(
                "select {schema}.enqueue(%s, %s) from generate_series(1, %s)", entrypoint, payload, times
            )
        ]

    def events(self, job_id: int) -> list[tuple[str, int]]:
        """(event, pid) of what the handlers wrote about a job, in order."""
        return self.rows("select event, pid from {log} where job_id = %s order by at, event", job_id)

    def status(self, job_id: int) -> str | None:
        """The status under which a job has finished."""
        rows = self.rows("select status from {schema}.finished where job_id = %s", job_id)
        return rows[0][0] if rows else None


@contextmanager
def open_fleet(dsn: str, schema: str) -> Iterator[Fleet]:
    """A fleet without workers; whatever is started in it has ended afterwards."""
    fleet = Fleet(dsn, schema, psycopg.connect(dsn, autocommit=True))
    try:
        fleet.rows(
            "create table {log} (job_id bigint, event text, pid integer, at timestamptz default clock_timestamp())"
        )
        try:
            yield fleet
        finally:
            for worker in fleet.workers:
                worker.end()
            fleet.rows("drop table {log}")
    finally:
        fleet.connection.close()
