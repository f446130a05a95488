"""Figure 3: our worker against PostgreSQL itself, driven by ``pgbench`` with the same statements and nothing around.

One client, prepared: a hinted claim, then the completion and record of its jobs, one after the other, with the settings
of the worker's connections. The claim does not wait for the disk and the completion does, as in a worker. Two things
differ, because pgbench keeps only single rows: the claim's rows are gathered into arrays and not sent; and it has one
connection where the worker has two, whose statements may overlap.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import tempfile
from pathlib import Path

import psycopg

from pgq_anyio import PgQueuer
from pgq_anyio._hints import HIGHEST, LOWEST
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._store._sql import Store

from ._children import MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, median, ratio
from ._filling import insert_queued, make_tables
from ._server import ask, bench_database, pgbench_program, settle
from .contenders._contender import OURS, drain, ours

TITLE = "Against PostgreSQL's own limit"
HOW = (
    "The statements of a worker (claim, completion, record) driven by pgbench with one client and prepared statements, "
    "in batches of different sizes, and the worker itself on the same server."
)
QUICK = {"jobs": 20_000, "rounds": 1}
FULL = {"jobs": 200_000, "rounds": 5}

_BATCH = inspect.signature(PgQueuer.run).parameters["batch_size"].default
#: Jobs per claim of our worker by default.
DEFAULT_BATCH = _BATCH if isinstance(_BATCH, int) else 100
BATCHES = tuple(sorted({100, 500, DEFAULT_BATCH}))
#: The claim's answer is replaced by one row.
ANSWER = "\nselect (select count(*) from candidate)"
GATHERED = """
select (select count(*) from candidate) as candidates, set_config('synchronous_commit', 'off', true) as durability,
    array_agg(m.job_id order by m.job_id) as job_ids, array_agg(%(worker_id)s::bigint) as worker_ids,
    array_agg(%(claim_no)s::bigint) as claim_nos, max(m.seq) as seq
from moved m
"""


def script(batch: int) -> str:
    """What pgbench runs again and again.

    :raises MeasurementError: if the claim does not end as it is known to
    """
    store = Store("pgq_anyio")
    claim, _, _ = _plain(store.sql("claim_hinted")).rpartition(ANSWER)
    if not claim:
        raise MeasurementError("the claim ends in another way than benchmarks.ceiling knows")
    claim = _set(
        claim + GATHERED,
        entrypoints="'{noop}'",
        priorities="'{0}'",
        seqs="array[:seq]",
        gap_entrypoints="'{noop,noop}'",
        gap_aboves=f"'{{{LOWEST},0}}'",
        gap_belows=f"'{{0,{HIGHEST}}}'",
        worker_id="1",
        claim_no=":claim_no",
        limit=str(batch),
        reach=str(batch),
        limit_changes="0",
    )
    finish = _set(
        _plain(store.sql("finish_jobs")), job_ids=":job_ids", worker_ids=":worker_ids", claim_nos=":claim_nos"
    )
    return f"\\set claim_no :claim_no + 1\n{claim.strip()}\n\\gset\n{finish.strip()};\n"


def _plain(statement: str) -> str:
    """Without comments, which may hold anything."""
    return re.sub(r"^ *--.*\n", "", statement, flags=re.MULTILINE)


def _set(statement: str, **values: str) -> str:
    return re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], statement).replace("%%", "%")


def run_pgbench(dsn: str, jobs: int, batch: int) -> float:
    """Jobs per second.

    :raises MeasurementError: if not all of them were claimed and recorded
    """
    count = jobs // batch
    with bench_database(dsn) as database, tempfile.TemporaryDirectory() as directory:
        make_tables(database)
        with psycopg.connect(database, autocommit=True) as conn:
            insert_queued(conn, jobs)
            conn.execute(
                "insert into pgq_anyio.worker (worker_id, name, entrypoints, max_crashes, lease) "
                "values (1, 'pgbench', '{noop}', '{5}', 600)"
            )
        settle(database)
        path = Path(directory) / "worker.sql"
        path.write_text(script(batch), "utf-8")
        settings = {**DISPATCH_SETTINGS, "synchronous_commit": "on"}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        variables = [f"-D{name}={value}" for name, value in (("seq", 0), ("claim_no", 0))]
        command = [str(pgbench_program()), "-n", "-c1", "-Mprepared", f"-t{count}", f"-f{path}", *variables, database]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PGOPTIONS": options}
        )
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode != 0 or found is None:
            raise MeasurementError(f"pgbench: {done.stderr.strip()[-1000:]}")
        with psycopg.connect(database, autocommit=True) as conn:
            recorded = int(ask(conn, "select count(*) from pgq_anyio.finished where status = 'successful'"))
    if recorded != count * batch:
        raise MeasurementError(f"pgbench recorded {recorded} jobs, not {count * batch}")
    return float(found[1]) * batch


def measure(bench: Bench) -> Results:
    """Take turns: pgbench with every batch, then the worker."""
    limits: dict[str, list[float]] = {}
    worker: list[float] = []
    for number in range(1, bench.size["rounds"] + 1):
        for batch in BATCHES:
            limits.setdefault(str(batch), []).append(run_pgbench(bench.dsn, bench.size["jobs"], batch))
            bench.say(f"round {number}: pgbench, batches of {batch}: {limits[str(batch)][-1]:,.0f} jobs/s")
        worker.append(drain(ours("uvloop"), bench.dsn, bench.size["jobs"]).jobs_per_second)
        bench.say(f"round {number}: {OURS} uvloop: {worker[-1]:,.0f} jobs/s")
    return {"limits": limits, "worker": worker, "default_batch": DEFAULT_BATCH}


def judge(results: Results) -> list[Verdict]:
    """The worker with its defaults, against batches of 100, which the goal names, and as large as its own may be."""
    verdicts = []
    for batch in sorted({100, results["default_batch"]}):
        limit = median(results["limits"][str(batch)])
        what = f"drain on asyncio+uvloop, against pgbench in batches of {batch}, one client"
        verdicts.append(at_least(3, what, ratio(median(results["worker"]), limit), 0.5))
    return verdicts


def _rates(results: Results) -> dict[str, float]:
    limits = {f"pgbench, batches of {batch}": median(rates) for batch, rates in results["limits"].items()}
    return {**limits, f"{OURS} uvloop, batches of up to {results['default_batch']}": median(results["worker"])}


def tables(results: Results) -> list[Table]:
    """Jobs per second."""
    rows = [(name, f"{rate:,.0f}") for name, rate in _rates(results).items()]
    return [Table("Claim, completion and record", ("", "jobs/s"), rows)]


def charts(results: Results) -> list[Chart]:
    """Jobs per second."""
    return [Bars("Claim, completion and record of no-op jobs", "jobs/s", _rates(results))]
