"""Passwords appear nowhere: not in logs and errors, not in the records of jobs, not in the list of processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typer.testing import CliRunner

from pgq_anyio import ConfigurationError, PgQueuer, PsycopgDriver, SyncQueries
from pgq_anyio._cli.program import app as program
from pgq_anyio._embedded import EmbeddedServer
from pgq_anyio._store.migrations import migrate_sync
from tests.cli.processes import Commands
from tests.worker.fleet import wait_until

pytestmark = pytest.mark.heavy

#: Its pieces are looked for, so that no form of it is overlooked.
PASSWORD = "hush1 @hush2/hush3:hush4%hush5'"
PIECES = ("hush1", "hush2", "hush3", "hush4", "hush5")


def url(dsn: str, password: str | None) -> str:
    """A DSN as a URL, with the password escaped."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    user = quote(parts.pop("user", "postgres"), safe="")
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"postgresql://{user}{secret}@/?{'&'.join(f'{name}={quote(value)}' for name, value in parts.items())}"


def forms(dsn: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Every way to say a password: options of the command line, and variables."""
    url_form, keyword_form = url(dsn, PASSWORD), make_conninfo(dsn, password=PASSWORD)
    return {
        "url": ([f"--dsn={url_form}"], {}),
        "keywords": ([f"--dsn={keyword_form}"], {}),
        "variable": ([], {"PGQ_ANYIO_DSN": url_form}),
        "DATABASE_URL": ([], {"DATABASE_URL": keyword_form}),
        "PGPASSWORD": ([f"--dsn={url(dsn, None)}"], {"PGPASSWORD": PASSWORD}),
    }


FORMS = ["url", "keywords", "variable", "DATABASE_URL", "PGPASSWORD"]
COMMANDS = [
    ["migrate"],
    ["enqueue", "fetch"],
    ["jobs", "list"],
    ["jobs", "show", "1"],
    ["cancel", "1"],
    ["jobs", "requeue", "1"],
    ["schedules", "list"],
    ["schedules", "pause", "x"],
    ["grants", "--read=pg_monitor", "--apply"],
    ["run", "tests.security.secret_apps:fresh", "--drain", "--log-level=debug"],
    ["run", "tests.security.secret_apps:fresh", "--drain", "--log-level=debug", "--log-format=json"],
    ["uninstall", "--yes"],
]


def read_proc(pid: int, name: str) -> str:
    """What Linux tells of a process; empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    return ""


def assert_hushed(text: str) -> None:
    """No piece of the password is in it."""
    assert [] == [piece for piece in PIECES if piece in text], text


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leave logging as it was: ``run`` sets it up for its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def secret_dsn(dsn: str, empty_schema: str) -> Iterator[str]:
    """The DSN, without password, of a role that has one."""
    name = f"secretive {empty_schema}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} superuser login password {}").format(sql.Identifier(name), PASSWORD))
        try:
            yield make_conninfo(dsn, user=name)
        finally:
            for end in ("drop owned by {} cascade", "drop role {}"):
                admin.execute(sql.SQL(end).format(sql.Identifier(name)))


def run_all(options: list[str], variables: Mapping[str, str], schema: str, logs: pytest.LogCaptureFixture) -> list[int]:
    """Run every command with its traceback, if there is one; their exit codes."""
    codes = []
    with logs.at_level(logging.DEBUG):
        for command in COMMANDS:
            arguments = [*command, *options, "--traceback", f"--schema={schema}"]
            result = CliRunner().invoke(program, arguments, env=variables, prog_name="pgq-anyio")
            assert_hushed(result.output + logs.text + repr(result.exception or ""))
            codes.append(result.exit_code)
    return codes


@pytest.mark.parametrize("form", FORMS)
def test_commands_that_work(secret_dsn: str, empty_schema: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a command says and logs."""
    codes = run_all(*forms(secret_dsn)[form], empty_schema, caplog)
    assert [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0] == codes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", ["no database", "no server", "no role"])
def test_commands_that_fail(
    secret_dsn: str, empty_schema: str, form: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What libpq and the server say."""
    faults = {
        "no database": {"dbname": "no_such_database"},
        "no server": {"host": "127.0.0.1", "port": "1"},
        "no role": {"user": "no such role"},
    }
    codes = run_all(*forms(make_conninfo(secret_dsn, **faults[fault]))[form], empty_schema, caplog)
    assert 0 not in codes


TORN = [
    "postgresql://u:hush1@hush2@h/d",
    "postgresql://u:hush1/hush2@h/d",
    "postgresql://u:hush1 hush2@h/d",
    "postgresql://u:hush1%hush2@h/d",
    "host=h password=hush1 hush2",
    "host=h password='hush1",
    "host=hpassword=hush1",
    "host=h port=5432password=hush1",
    "mysql://u:hush1@h/d",
    "hush1",
]


@pytest.mark.parametrize("dsn", TORN)
def test_what_cannot_be_read_is_not_quoted(dsn: str) -> None:
    """A DSN whose password was not escaped: libpq would quote a piece, the resolver another. Wherever one is given."""
    for make in (PsycopgDriver, SyncQueries, lambda dsn: PsycopgDriver("", direct_conninfo=dsn)):
        with pytest.raises(ConfigurationError) as caught:
            make(dsn)
        assert_hushed(f"{caught.value!r} {caught.value.__context__!r}")
    assert_hushed(repr(PgQueuer(dsn)))
    for options, variables in (([f"--dsn={dsn}"], {}), ([], {"PGQ_ANYIO_DSN": dsn}), ([], {"DATABASE_URL": dsn})):
        result = CliRunner().invoke(program, ["jobs", "list", "--traceback", *options], env=variables)
        assert 2 == result.exit_code
        assert_hushed(result.output)
    result = CliRunner().invoke(
        program, ["run", "tests.security.secret_apps:app", "--dsn=host=h", f"--direct-dsn={dsn}"]
    )
    assert 2 == result.exit_code
    assert_hushed(result.output)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_worker(secret_dsn: str, empty_schema: str, tmp_path: Path, backend: str) -> None:
    """Logs at their fullest, the arguments of every process, lost connections, and the records of jobs that fail
    because of a database.
    """
    pid_file = tmp_path / "pid"
    environment = {
        "PGQ_ANYIO_DSN": url(secret_dsn, PASSWORD),
        "PGQ_ANYIO_DIRECT_DSN": make_conninfo(secret_dsn, password=PASSWORD),
        "PGQ_TEST_TORN_DSN": TORN[0],
        "PGQ_TEST_PID_FILE": str(pid_file),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with psycopg.connect(secret_dsn, autocommit=True) as admin, Commands(secret_dsn, tmp_path) as commands:
        migrate_sync(admin, empty_schema)
        queries = SyncQueries(admin, schema=empty_schema)
        options = [
            f"--schema={empty_schema}",
            f"--backend={backend}",
            "--log-format=json",
            "--log-level=debug",
            "--lease=5",
        ]
        worker = commands.start("run", "tests.security.secret_apps:app", *options, environment=environment)
        worker.wait_said("ready: registered and listening", 40)
        ids = queries.enqueue(["wait", "unreachable", "unreadable"])
        wait_until(lambda: pid_file.exists() and queries.queue_size() == {}, timeout=40)
        processes = [
            worker.popen.pid,
            *(child.pid for child in psutil.Process(worker.popen.pid).children(recursive=True)),
        ]
        seen = [read_proc(pid, "cmdline") for pid in processes]
        assert len([text for text in seen if text]) >= 2
        assert_hushed("".join(seen))
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgq_anyio %'"
            " and usename = session_user"
        )
        wait_until(lambda: {job.id for job in queries.list_jobs(status="failed")} == set(ids[1:]), timeout=40)
        queries.mark_job_as_cancelled(ids)
        wait_until(lambda: len(queries.list_jobs(status="cancelled")) == 1, timeout=40)
        worker.signal(signal.SIGTERM)
        assert 0 == worker.wait(40), worker.output
        assert_hushed(worker.output)
        for job_id in ids:
            shown = CliRunner().invoke(program, ["jobs", "show", str(job_id), options[0]], env=environment)
            assert 0 == shown.exit_code
            assert_hushed(shown.output)
        for job in queries.list_jobs():
            assert_hushed(repr(job))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_the_embedded_server_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the arguments of its processes, nor in their environment."""
    for name in ("PGQ_ANYIO_DSN", "DATABASE_URL", "PGPASSWORD", "PGPASSFILE", "SECRET_KEY"):
        monkeypatch.setenv(name, PASSWORD)
    with EmbeddedServer(ephemeral=True) as dsn, psycopg.connect(dsn, password="") as conn:
        ((backend,),) = conn.execute("select pg_backend_pid()").fetchall()
        # The session's process, the server that forked it, and the guardian that started the server.
        family = [backend, *(parent.pid for parent in psutil.Process(backend).parents()[:2])]
        family += [child.pid for child in psutil.Process(family[1]).children()]
        assert os.getpid() not in family
        for pid in family:
            assert_hushed(read_proc(pid, "cmdline") + read_proc(pid, "environ"))
        for pid in family[1:3]:
            assert "PATH=" in read_proc(pid, "environ")
            assert read_proc(pid, "cmdline")
