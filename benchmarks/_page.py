"""The page "How fast" of the documentation, made from the results and from nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ._peers import ROOT
from ._run import Record, read_records
from ._tried import explain

PAGE = ROOT / "docs" / "how-fast.md"
#: What the page shows and links to: charts, and the results that it is made from.
FILES = ROOT / "docs" / "how-fast"

INTRODUCTION = """\
# How fast

<!-- Made by `python -m benchmarks report`: change benchmarks/_page.py, not this page. -->

What a worker does in a second, what it costs, and what happens to it when the queue is long, a report holds an old
snapshot, or many workers share a queue. Everything runs on one machine: the server, the worker and whoever enqueues.
Figures of different machines cannot be compared, and those of different hours on one machine badly: what counts is the
ratio between contenders that took turns in one run.

`python3 noxfile.py -s bench` measures all of it again, in an hour to an hour and a half and on a database of its own;
`python3 noxfile.py -s bench-quick` takes three minutes for a first look.
"""

FAIRNESS = """\
## What is compared

Every contender gets the same jobs, with 100 bytes of payload and a handler that does nothing, on the same server, in a
fresh database, with one worker process. They take turns, and medians of the rounds are shown. A run counts only if
every job was handled and its end recorded.

- **pgq_anyio** runs with the defaults of `PgQueuer.run` unless it says otherwise. Nothing is switched off: each job
  has a context of its own and a scope to itself while it runs (one that nobody has cancelled serves the next job), its
  outcome is recorded and kept, and heartbeats go on.
- **PgQueuer** runs on asyncpg and uvloop, with batches of 100 and 500 (its default is 10), on one connection and on a
  pool of four, with no limit of concurrency and without the periodic aggregation of its log; once more with the
  settings for vacuuming that its command `pgq autovac` makes. The best of these counts. It records every outcome,
  too. Its unlogged tables are left out: their records would not survive a crash.
- **graphile-worker** runs with the settings that its documentation gives for performance: a local queue of 500 jobs, 24
  jobs at a time, completions in batches. Its payload is JSON of 100 bytes. It deletes jobs that succeed, so that less
  is written: there is no record that anybody could look up.

PostgreSQL has `shared_buffers=1GB` and `max_wal_size=8GB` and otherwise its defaults: commits wait for the disk.
"""


def write_page(place: Path) -> int:
    """Bring the results into the documentation, draw the charts and write the page; 1 if there are no results."""
    from ._plots import draw

    if not read_records(place):
        print(f"there are no results in {place}: measure first")
        return 1
    FILES.mkdir(exist_ok=True)
    for old in FILES.iterdir():
        old.unlink()
    for record in read_records(place):
        shutil.copy(place / f"{record.name}.json", FILES)
        for number, chart in enumerate(record.figure.charts(record.results), 1):
            draw(chart, FILES / chart_name(record, number))
    PAGE.write_text(render(read_records(FILES)), "utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def chart_name(record: Record, number: int) -> str:
    """The file of a chart."""
    return f"{record.name}-{number}.svg"


def render(records: Sequence[Record]) -> str:
    """The page."""
    parts = [INTRODUCTION, _goals(records), FAIRNESS, *(_section(record) for record in records), _facts(records)]
    return "\n".join(parts)


def _goals(records: Sequence[Record]) -> str:
    answers = {True: "yes", False: "**no**", None: "not judged"}
    verdicts = [(one, record.full) for record in records for one in record.verdicts()]
    verdicts.sort(key=lambda pair: pair[0].number)
    rows = [
        (str(one.number), one.what, one.goal, one.measured, answers[one.met if full else None])
        for one, full in verdicts
    ]
    small = [record.name for record in records if not record.full]
    which = "all figures" if len(small) == len(records) else ", ".join(small)
    note = f"\nMeasured in a small size, for a first look, and therefore not judged: {which}.\n" if small else ""
    return f"## Goals\n\n{_table(('', 'figure', 'goal', 'measured', 'met'), rows)}{note}{_missed(records)}"


def _missed(records: Sequence[Record]) -> str:
    told = explain(one for record in records if record.full for one in record.verdicts())
    if not told:
        return ""
    lines = [f"- **Figure {number}.** {text}\n" for number, text in told.items()]
    return "\nGoals that are not met:\n\n" + "".join(lines)


def _section(record: Record) -> str:
    lines = [f"## {record.figure.TITLE}\n", f"{record.figure.HOW}\n"]
    for number, chart in enumerate(record.figure.charts(record.results), 1):
        lines.append(f"![{chart.title}](how-fast/{chart_name(record, number)})\n")
    tables = record.figure.tables(record.results)
    lines += [f"{table.title}:\n\n{_table(table.header, table.rows)}" for table in tables]
    lines += [f"Missing: {name}: {reason.splitlines()[-1]}\n" for name, reason in record.missing.items()]
    size = ", ".join(f"{key} {value:,}" for key, value in record.size.items())
    lines.append(f"Measured on {record.measured_at[:10]} ({size}). [All numbers](how-fast/{record.name}.json)\n")
    return "\n".join(lines)


def _facts(records: Sequence[Record]) -> str:
    facts: dict[str, str] = {}
    for record in records:
        for name, value in record.facts.items():
            known = facts.get(name, value)
            facts[name] = value if known == value else f"{known}, {value}"
    peers = dict.fromkeys(peer for record in records for peer in record.peers.values())
    rows = [*facts.items(), *(("peer", peer) for peer in peers)]
    return f"## Versions and settings\n\n{_table(('', ''), rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
