"""Figure 12: what a worker costs that has nothing to do, in its own process and in the server, and what it asks.

The server without a worker is measured first, and its share taken off. What the machine takes for the least that any
worker with a lease does, a statement every ten seconds and the sleep between, is measured beside them: memory and
caches of a process that sleeps for long go cold, most of all on virtual machines.

Statements are counted in the server's log, which the database of the measurement fills with every statement; autovacuum
says nothing there.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import attrs
import psutil
import psycopg
from psycopg import sql

from ._children import LOOPS, MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_most, median
from ._server import bench_database, find_postmaster, server_cpu
from .contenders._contender import OURS, Contender, graphile_worker, ours, pgqueuer

TITLE = "An idle worker"
HOW = (
    "A worker with nothing to do, five seconds after its start: CPU of its process and of the server, less that of a "
    "server without a worker, and the statements that it sends. PostgreSQL alone: a process that does nothing but send "
    "a short statement every ten seconds, without a queue and without an event loop."
)
QUICK = {"seconds": 5, "rounds": 1, "loops": 1, "peers": 0}
FULL = {"seconds": 30, "rounds": 3, "loops": 3, "peers": 1}

CONTENDERS = tuple(ours(loop) for loop in LOOPS)
BARE = attrs.evolve(ours("asyncio"), name="PostgreSQL alone", options={"loop": "asyncio", "bare": True})
PEERS = (BARE, pgqueuer(100), graphile_worker())
#: How often a worker says how many jobs it has run (in seconds): never.
SILENCE = 1e6
#: A worker looks again a few times before it trusts that there is nothing (in seconds).
FALLING_ASLEEP = 5.0
#: CPU time is counted in hundredths of a second: in less time than this nothing can be said about 0.3 % (in seconds).
ENOUGH = 30
STATEMENT = re.compile(rb"LOG:  (?:statement|execute [^:]*): ")
#: Our defaults, a third of the lease of 30 s (less its jitter of a tenth) and the poll interval (in seconds).
HEARTBEAT, POLL = 9.0, 30.0


def measure(bench: Bench) -> Results:
    """In turns."""
    seconds = bench.size["seconds"]
    postmaster = find_postmaster(bench.dsn)
    before = server_cpu(postmaster)
    time.sleep(seconds)
    empty = (server_cpu(postmaster) - before) / seconds * 100
    bench.say(f"the server alone: {empty:.2f} % of a core")
    idle: dict[str, list[dict[str, float]]] = {}
    found = bench.present(CONTENDERS[: bench.size["loops"]] + (PEERS if bench.size["peers"] else ()))
    for number in range(1, bench.size["rounds"] + 1):
        for one in found:
            try:
                figures = _measure(one, bench, postmaster, empty)
            except MeasurementError as error:
                bench.lose(one.name, str(error))
                continue
            idle.setdefault(one.name, []).append(figures)
            used = f"worker {figures['worker']:.2f} %, server {figures['server']:.2f} %"
            bench.say(f"round {number}: {one.name}: {used}, {figures['asked']:.0f} statements")
    return {"idle": idle, "empty_server": empty, "seconds": seconds}


def _measure(one: Contender, bench: Bench, postmaster: psutil.Process, empty: float) -> dict[str, float]:
    seconds = bench.size["seconds"]
    with bench_database(bench.dsn) as database:
        one.step("fill", database, jobs=0, chunk=1)
        with psycopg.connect(database, autocommit=True) as conn:
            name = sql.Identifier(conn.info.dbname)
            conn.execute(sql.SQL("alter database {} set log_statement = 'all'").format(name))
        with one.serve(database, report=SILENCE) as child:
            child.wait_ready()
            time.sleep(FALLING_ASLEEP)
            worker, log = psutil.Process(child.pid), Path(f"/proc/{postmaster.pid}/fd/2").readlink()
            position, server = log.stat().st_size, server_cpu(postmaster)
            before = sum(worker.cpu_times()[:2])
            time.sleep(seconds)
            used, served = sum(worker.cpu_times()[:2]) - before, server_cpu(postmaster) - server
            with log.open("rb") as file:
                file.seek(position)
                asked = len(STATEMENT.findall(file.read()))
            child.check()
            child.leave()
    return {"worker": used / seconds * 100, "server": max(0.0, served / seconds * 100 - empty), "asked": asked}


def _used(results: Results) -> dict[str, float]:
    """CPU of worker and server (in percent of a core), medians of the rounds."""
    return {name: median(one["worker"] + one["server"] for one in rounds) for name, rounds in results["idle"].items()}


def judge(results: Results) -> list[Verdict]:
    """CPU and statements, on every loop."""
    verdicts = []
    for loop in LOOPS:
        used = _used(results).get(f"{OURS} {loop}") if results["seconds"] >= ENOUGH else None
        verdicts.append(at_most(12, f"idle, worker and server, {loop}", used, 0.3, unit="% of a core"))
    allowed = float(int(results["seconds"] / HEARTBEAT) + 1 + int(results["seconds"] / POLL) + 1)
    asked = max(
        (one["asked"] for name, rounds in results["idle"].items() if name.startswith(OURS) for one in rounds),
        default=None,
    )
    what = f"statements of an idle worker in {results['seconds']} s"
    verdicts.append(at_most(12, what, asked, allowed, unit="", digits=0))
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every contender."""
    minute = 60 / results["seconds"]
    rows = []
    for name, rounds in results["idle"].items():
        both = [one["worker"] + one["server"] for one in rounds]
        shares = (f"{median(one[part] for one in rounds):.2f}" for part in ("worker", "server"))
        spread = f"{min(both):.2f} … {max(both):.2f}"
        rows.append((name, *shares, spread, f"{median(one['asked'] for one in rounds) * minute:.0f}"))
    header = ("", "worker, % of a core", "server, % of a core", "both, lowest … highest", "statements a minute")
    return [Table("An idle worker", header, rows)]


def charts(results: Results) -> list[Chart]:
    """CPU."""
    return [Bars("An idle worker, CPU of worker and server", "% of a core", _used(results), goal=0.3)]
