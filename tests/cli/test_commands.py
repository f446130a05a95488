"""The commands that do something and end: the tables, enqueueing, cancelling, looking at jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner, Result

from pgq_anyio import SyncQueries
from pgq_anyio._cli.program import app
from tests.cli.processes import Commands
from tests.worker.fleet import Fleet

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(dsn: str, request: pytest.FixtureRequest) -> Invoke:
    """Runs a command on the test's schema, which has tables if the test asks for them (``schema``, ``fleet``)."""
    schema: str = request.getfixturevalue("schema" if "schema" in request.fixturenames else "empty_schema")

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        options = [f"--dsn={dsn}", f"--schema={schema}"]
        return CliRunner().invoke(app, [*arguments, *options], input=stdin, prog_name="pgq-anyio")

    return invoke


def printed_ids(result: Result) -> list[int]:
    """The ids that a command printed."""
    assert result.exit_code == 0, result.output
    return [int(line) for line in result.stdout.split()]


@pytest.mark.promise(45)
def test_migrate_and_uninstall(invoke: Invoke, empty_schema: str, dsn: str) -> None:
    """Both do their work once, do no harm the second time, and say which it was."""
    first = invoke("migrate")
    assert (0, True) == (first.exit_code, "is up to date: applied" in first.stdout)
    assert "is up to date; there was nothing to do" in invoke("migrate").stdout
    with SyncQueries(dsn, schema=empty_schema) as queries:
        queries.enqueue("fetch")
    refused = invoke("uninstall")
    assert refused.exit_code == 2
    assert "say that you mean it with --yes" in refused.stderr
    assert "has been removed" in invoke("uninstall", "--yes").stdout
    assert "does not exist; there was nothing to do" in invoke("uninstall", "--yes").stdout


def test_the_printed_sql_makes_the_tables(invoke: Invoke, empty_schema: str, dsn: str) -> None:
    """What ``migrate --sql`` prints is what ``migrate`` would do, but for commands of psql."""
    printed = invoke("migrate", "--sql")
    assert printed.exit_code == 0
    text = "\n".join(line for line in printed.stdout.splitlines() if not line.startswith("\\"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(text.encode())
    assert "there was nothing to do" in invoke("migrate").stdout


@pytest.mark.promise(7)
def test_enqueue(invoke: Invoke, fleet: Fleet) -> None:
    """A job arrives with its payload, priority and time, and its id is printed."""
    (now,) = printed_ids(invoke("enqueue", "fetch", "--payload", "grüße", "--priority", "7"))
    assert [("grüße".encode(), 7)] == fleet.rows("select payload, priority from {schema}.queued where job_id = %s", now)
    (bare,) = printed_ids(invoke("enqueue", "fetch"))
    assert [(None,)] == fleet.rows("select payload from {schema}.queued where job_id = %s", bare)
    (piped,) = printed_ids(invoke("enqueue", "fetch", "-p", "-", stdin=b"\x00\xff\n"))
    assert [(b"\x00\xff\n",)] == fleet.rows("select payload from {schema}.queued where job_id = %s", piped)
    (delayed,) = printed_ids(invoke("enqueue", "fetch", "--delay", "1h30m"))
    left = fleet.value("select run_at - clock_timestamp() from {schema}.deferred where job_id = %s", delayed)
    assert timedelta(minutes=89) < left <= timedelta(minutes=90)
    (at,) = printed_ids(invoke("enqueue", "fetch", "--at", "2099-01-31T12:00+01:00"))
    due = fleet.value("select run_at from {schema}.deferred where job_id = %s", at)
    assert datetime(2099, 1, 31, 11, tzinfo=UTC) == due


def test_enqueue_many(invoke: Invoke, fleet: Fleet) -> None:
    """Many jobs in one call have as many ids, each its own."""
    ids = printed_ids(invoke("enqueue", "fetch", "--times", "12000"))
    assert len(set(ids)) == len(ids) == fleet.value("select count(*) from {schema}.queued") == 12_000


@pytest.mark.promise(24)
def test_cancel(invoke: Invoke, fleet: Fleet) -> None:
    """The ids that were cancelled are printed; others are counted and are no error."""
    ids = printed_ids(invoke("enqueue", "fetch", "--times", "2"))
    done = invoke("cancel", *map(str, ids), "999999", "--reason", "no need")
    assert ids == sorted(printed_ids(done))
    assert "1 job had ended already, or is unknown" in done.stderr
    assert ["cancelled", "cancelled"] == [fleet.status(job_id) for job_id in ids]
    assert "2 jobs had ended already, or are unknown" in invoke("cancel", *map(str, ids)).stderr


def test_look_at_jobs(invoke: Invoke, fleet: Fleet) -> None:
    """Jobs are listed with filters, shown in full, and can be had as JSON."""
    first, second = printed_ids(invoke("enqueue", "fetch", "--times", "2", "-p", "[red]text"))
    (other,) = printed_ids(invoke("enqueue", "send", "-p", "-", stdin=b"\xff"))
    printed_ids(invoke("cancel", str(second), "--reason", "no need"))
    listed = invoke("jobs", "list").stdout.splitlines()
    assert [str(other), str(second), str(first)] == [line.split()[0] for line in listed[1:]]
    assert "cancelled" in listed[2]
    cancelled = [
        json.loads(line) for line in invoke("jobs", "list", "--status=cancelled", "--json").stdout.splitlines()
    ]
    assert [(second, "cancelled", "no need")] == [(job["id"], job["status"], job["cancel_reason"]) for job in cancelled]
    named = invoke("jobs", "list", "--name=send", "--json").stdout
    assert (other, {"hex": "ff"}) == (json.loads(named)["id"], json.loads(named)["payload"])
    older = invoke("jobs", "list", "--before", str(second), "--json").stdout
    assert first == json.loads(older)["id"]
    assert "no jobs" in invoke("jobs", "list", "--status=failed").stderr
    shown = invoke("jobs", "show", str(first)).stdout
    assert "[red]text" in shown
    assert "queued" in shown
    missing = invoke("jobs", "show", "999999")
    assert (1, True) == (missing.exit_code, "there is no job 999999" in missing.stderr)


def test_texts_of_jobs_are_shown_as_they_are(invoke: Invoke, fleet: Fleet) -> None:
    """Colons mean nothing, and what a terminal would obey is written out."""
    (job,) = fleet.enqueue("billing:key:rotate\x1b[31m")
    assert 0 == invoke("cancel", str(job), "--reason", "[bold]why\x1b[2J").exit_code
    for command in (["list"], ["show", str(job)]):
        assert "billing:key:rotate\\x1b[31m" in invoke("jobs", *command).stdout
    assert "[bold]why\\x1b[2J" in invoke("jobs", "show", str(job)).stdout


def test_ids_reach_a_pipe_beside_a_terminal(commands: Commands, fleet: Fleet) -> None:
    """The bar is drawn on the terminal, and the ids go where they are asked for."""
    code, output = commands.run_beside_a_terminal(
        "enqueue", "fetch", "--times=3", f"--dsn={commands.dsn}", f"--schema={fleet.schema}"
    )
    ids = [int(line) for line in output.split()]
    assert (0, 3) == (code, len(ids))
    assert [(3,)] == fleet.rows("select count(*) from {schema}.queued where job_id = any (%s)", ids)


def test_what_handlers_print_reaches_a_pipe_beside_a_terminal(commands: Commands, fleet: Fleet) -> None:
    """Word for word, while the bar of ``--drain`` is drawn on the terminal."""
    (commands.directory / "shop.py").write_text(
        "from pgq_anyio import PgQueuer\n"
        "app = PgQueuer()\n"
        "@app.entrypoint('fetch')\n"
        "async def fetch(job):\n"
        "    print('[/x] [red]:key:', end='', flush=True)\n"
    )
    (job,) = fleet.enqueue("fetch")
    code, output = commands.run_beside_a_terminal(
        "run", "shop:app", "--drain", f"--dsn={commands.dsn}", f"--schema={fleet.schema}"
    )
    assert (0, "[/x] [red]:key:", "successful") == (code, output, fleet.status(job))


@pytest.mark.promise(29)
def test_show_errors(invoke: Invoke, commands: Commands, fleet: Fleet) -> None:
    """A failed job is shown with its error and traceback."""
    (job,) = fleet.enqueue("itself", b"error")
    code, output = commands.run(
        "run", "tests.cli.apps:throwing", f"--dsn={commands.dsn}", f"--schema={fleet.schema}", "--drain",
        environment=commands.environment(fleet.schema),
    )  # fmt: skip
    assert code == 0, output
    shown = invoke("jobs", "show", str(job)).stdout
    assert "ValueError: no" in shown
    assert "in throw" in shown
    assert "ValueError: no" in invoke("jobs", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["enqueue", "fetch", "--delay=5", "--at=2031-01-01"], "say the same thing"),
        (["enqueue", "fetch", "--at=soon"], "is no time: write 2031-01-31T12:00:00+01:00"),
        (["enqueue", "fetch", "--delay=99999999999999"], "--delay is longer than any time"),
        (["enqueue", ""], "must not be empty"),
        (["cancel", "x"], "'x' is no job id"),
        (["jobs", "show", "0"], "'0' is no job id"),
    ],
)
def test_misuse(invoke: Invoke, schema: str, arguments: list[str], said: str) -> None:
    """What cannot be meant is refused with 2 and one line that names it."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.promise(39)
@pytest.mark.parametrize("arguments", [["enqueue", "fetch"], ["cancel", "1"], ["jobs", "list"], ["jobs", "show", "1"]])
def test_no_tables(invoke: Invoke, empty_schema: str, arguments: list[str]) -> None:
    """Without tables every command names the one that makes them."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert f"pgq-anyio migrate --schema {empty_schema}" in result.stderr


def test_schemas_are_checked(invoke: Invoke, dsn: str, schema: str) -> None:
    """A newer schema is refused by every command, and left as it is."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = sql.Identifier(schema, "migration")
        connection.execute(sql.SQL("insert into {} (name) values ('999_future')").format(table))
    for arguments in (["enqueue", "fetch"], ["migrate"]):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "is newer than this code (unknown: 999_future)" in result.stderr
