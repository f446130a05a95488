"""Hours in small: jobs of all kinds at a steady rate, one fault after the other, and nothing is lost and nothing grows.

The short form takes two minutes at 100 jobs/s, and lets the quicker faults happen once each. ``python3 noxfile.py -s
soak`` is the long one: 30 minutes at 2,000 jobs/s with a fault every 20 s, unless ``PGQ_ANYIO_TEST_SOAK_MINUTES`` and
``PGQ_ANYIO_TEST_SOAK_RATE`` say otherwise. It says every minute how it goes. What is proven, and how, stands in
``verdict``; what must not grow, and for whom, in ``gauges`` and ``stage``.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.soak.app import LIMIT
from tests.soak.feed import Feed, feeding
from tests.soak.gauges import Gauges
from tests.soak.records import Records
from tests.soak.report import Result, levels
from tests.soak.stage import FAULTS, QUICK, Stage, finish_rest, open_stage
from tests.soak.verdict import Runs, count_doubled, find_unexplained, find_unfounded, most_at_once, percentiles
from tests.worker.own_server import OwnServer, open_own_server
from tests.worker.proxy import open_proxy

LONG = "PGQ_ANYIO_TEST_SOAK_MINUTES" in os.environ
MINUTES = float(os.environ.get("PGQ_ANYIO_TEST_SOAK_MINUTES", "2"))
RATE = float(os.environ.get("PGQ_ANYIO_TEST_SOAK_RATE", "2000" if LONG else "100"))
#: From one fault to the next, and from one look to the next (in seconds).
PERIOD, LOOK = (20.0, 5.0) if LONG else (MINUTES * 60 / (len(QUICK) + 1), 1.0)
#: How long it may take until all jobs have ended (in seconds).
PATIENCE = 120.0
#: Which part of the rate has to have been enqueued, outages of the server included. The short form shares its machine
#: with other tests.
ENOUGH = 0.85 if LONG else 0.5
#: In two minutes tables and indexes do not grow so large that their bounds would mean anything.
PROMISES = (15, 47) if LONG else (15,)

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to see what processes use"),
    pytest.mark.timeout(MINUTES * 60 + 900),
]


@pytest.fixture
def server(server_dsn: str, empty_schema: str) -> Iterator[OwnServer]:
    """A server of its own that keeps its tables in order by itself."""
    tidy = {"autovacuum": "on", "autovacuum_naptime": "5s", "log_statement": "none", "wal_writer_delay": "200ms"}
    with open_own_server(server_dsn, **tidy) as server:
        server.start()
        server.migrate(empty_schema)
        yield server


@pytest.fixture
def stage(server: OwnServer, empty_schema: str, tmp_path: Path) -> Iterator[Stage]:
    with (
        open_proxy(server.dsn) as one,
        open_proxy(server.dsn) as other,
        open_stage(server, empty_schema, tmp_path, (one, other)) as stage,
    ):
        yield stage


@attrs.define(eq=False)
class Watch:
    """Looks at everything now and then, and says every minute how it goes."""

    stage: Stage
    feed: Feed
    gauges: Gauges
    records: Records
    began_at: float = attrs.field(factory=time.monotonic)
    _said: int = 0

    def look(self) -> None:
        """Once."""
        for backend, worker in self.stage.steady.items():
            self.gauges.read_worker(f"the {backend} worker", worker.pid)
        postmaster = int((self.stage.server.data / "postmaster.pid").read_text().split()[0])
        self.gauges.read_server(self.stage.fleet, postmaster)
        self.records.read()
        if (minutes := int(time.monotonic() - self.began_at) // 60) > self._said:
            self._said = minutes
            print(
                f"{minutes} min: {len(self.feed.ids) + len(self.stage.called):,} jobs enqueued,"
                f" {self.records.count:,} ended,"
                f" {len(self.stage.faults)} faults, recovered within {max(self.stage.recoveries, default=0):.1f} s;"
                f" {self.gauges}",
                flush=True,
            )

    def wait(self, until: float) -> None:
        """Look every now and then until a time has come (of the monotonic clock)."""
        while True:
            self.look()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, LOOK))  # what is measured is a time of load


def run_faults(watch: Watch) -> None:
    """The quick ones once each; or all in turn until the time is over, and then a while without any."""
    names = itertools.cycle(FAULTS) if LONG else iter(QUICK)
    end = watch.began_at + MINUTES * 60
    for number, name in enumerate(names, 1):
        watch.wait(watch.began_at + number * PERIOD)
        if LONG and time.monotonic() > end - 2 * PERIOD:
            break
        took = watch.stage.do(name)
        print(f"{time.monotonic() - watch.began_at:.0f} s: {name}: all is well after {took:.1f} s", flush=True)
    watch.wait(max(end, time.monotonic() + PERIOD))


@pytest.mark.long
@pytest.mark.promise(*PROMISES)
def test_load_and_faults_go_on_and_on(stage: Stage) -> None:
    """Every job ends once, none runs again without a reason, limits hold, and nothing grows in what was not hit."""
    stage.start()
    feed = Feed(stage.fleet.dsn, stage.fleet.schema, RATE)
    watch = Watch(stage, feed, Gauges(), Records(stage.fleet))
    with feeding(feed):
        run_faults(watch)
    minutes = (time.monotonic() - watch.began_at) / 60
    finish_rest(stage.fleet, PATIENCE)
    watch.records.read()
    print(f"{time.monotonic() - watch.began_at:.0f} s: all jobs have ended", flush=True)
    stage.stop()
    print(f"{time.monotonic() - watch.began_at:.0f} s: the workers have stopped", flush=True)
    result = judge(stage, watch, minutes)
    print(f"\n{result.table()}", flush=True)
    assert [] == watch.gauges.grown()
    result.save()


def judge(stage: Stage, watch: Watch, minutes: float) -> Result:
    """Compare what was enqueued, what was recorded, and what the handlers have written."""
    feed, records, faults = watch.feed, watch.records, stage.faults
    ids = [*feed.ids, *stage.called]
    assert [] == records.twice, "a job has two records"
    lost = [job_id for job_id in ids if records.status(job_id) is None]
    assert not lost, f"{len(lost)} jobs are lost: {lost[:20]}"
    assert records.count - len(ids) <= feed.uncertain, "there are records of jobs that nobody has enqueued"
    runs = Runs(sorted(stage.journals.iterdir()))
    ended = ((job_id, records.status(job_id)) for job_id in ids)
    kinds = feed.special | dict.fromkeys(stage.called, "held")
    assert [] == find_unfounded(ended, kinds, runs)[:20], "recorded otherwise than written by the handlers"
    repeated, capped = runs.whole()
    assert [] == find_unexplained(repeated, faults)[:20], "ran again without a reason"
    assert most_at_once(capped, "limited", faults) <= LIMIT
    assert most_at_once(capped, "serial", faults) <= 1
    # A tick whose worker is killed is free again when the lease is over.
    assert len(set(runs.ticks)) > minutes * 30, "the schedule has stood still"
    rate = len(feed.ids) / minutes / 60
    assert rate >= ENOUGH * feed.rate, f"{rate:,.0f} jobs were enqueued in a second, {feed.rate:,.0f} were asked for"
    hits = [(fault.began_at - 1, fault.ended_at) for fault in faults]
    calm = [latency for at, latency in runs.latencies if not any(begin < at < end for begin, end in hits)]
    return Result(
        minutes=minutes,
        rate=rate,
        jobs=records.count,
        runs=runs.starts_in_all,
        lost=len(lost),
        doubled=count_doubled(repeated),
        faults=len(faults),
        recovered=max(stage.recoveries),
        calm=percentiles(calm),
        overall=percentiles(latency for _, latency in runs.latencies),
        levels=levels(watch.gauges),
    )
