"""Commands, given anything: they end with 0, 1 or 2, say something, show no traceback, and change nothing else."""

from __future__ import annotations

import inspect
import string
import time
from collections.abc import Sequence
from typing import TypeVar

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql
from typer.testing import CliRunner, Result

from pgq_anyio import ConfigurationError, Job, JobStatus, PgQueuer, SyncQueries
from pgq_anyio._cli import demo
from pgq_anyio._cli.program import app
from pgq_anyio._cli.run import run
from pgq_anyio._embedded import ServerStartError
from pgq_anyio._store._sql import Store
from tests.fuzz.test_functions import attempt, counts
from tests.fuzz.values import HOSTILE, NUMBERS, TEXTS
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

T = TypeVar("T")

#: As a shell can pass them: no NUL.
WORDS = (st.sampled_from(HOSTILE) | NUMBERS.map(str) | TEXTS).map(lambda text: text.replace("\x00", ""))
COMMANDS = (
    ("enqueue", "{0}", "--priority={1}", "--delay=3{2}"),
    ("enqueue", "fetch", "--at={0}", "--priority={1}"),
    ("enqueue", "fetch", "--times=-{0}"),  # never so many jobs as a number can be
    ("cancel", "--", "{0}", "{1}"),
    ("cancel", "--yes", "--entrypoint={0}", "--older-than={1}"),
    ("cancel", "--yes", "--status={0}"),
    ("jobs", "requeue", "--yes", "--entrypoint={0}", "--after={1}"),
    ("jobs", "requeue", "--yes", "--error={0}", "--limit={1}"),
    ("jobs", "requeue", "--yes", "--status={0}", "--before={1}"),
    ("jobs", "requeue", "--yes", "--status=cancelled", "--entrypoint={0}", "--before={1}"),
    ("jobs", "requeue", "--yes", "--status=cancelled", "--before=2001-01-01", "--limit={0}"),
    ("jobs", "requeue", "--", "{0}", "{1}"),
    ("jobs", "requeue", "--status={0}", "--", "{1}", "{2}"),
    ("jobs", "list", "--entrypoint={0}", "--before={1}"),
    ("jobs", "list", "--limit={0}", "--status={1}"),
    ("jobs", "show", "--", "{0}"),
    ("schedules", "pause", "--", "{0}", "{1}"),
    ("enqueue", "fetch", "--payload={0}", "--priority={1}"),
    ("cancel", "--yes", "--entrypoint={0}", "--reason={1}"),
    ("schedules", "resume", "--", "{0}", "{1}"),
    ("schedules", "run", "--", "{0}", "{1}"),
    ("schedules", "remove", "--force", "--", "{0}", "{1}"),
    ("schedules", "list", "--json"),
    ("grants", "--read={0}", "--work={1}"),
    ("grants", "--migrate={0}", "--produce={1}", "--operate={2}"),
    ("run", "{0}", "--lease={1}"),
    ("run", "json:{0}"),
    ("{0}", "{1}"),
)
#: Ids of jobs begin where no word leads to by chance.
FIRST_ID = 10**15
#: Every option of ``run`` that has a value; the app is not there, so that no worker starts with a good one.
RUN_OPTIONS = [
    f"--{name.replace('_', '-')}"
    for name, parameter in inspect.signature(run).parameters.items()
    if name not in ("ctx", "target") and parameter.default is not False
]
#: As durations and numbers.
AMOUNTS = ("0", "-1", "nan", "inf", "1e400", "1d" * 2000, "9" * 5000)
DSNS = st.sampled_from(
    [
        "host=/nowhere",
        "host=127.0.0.1 port=1",
        "host=127.0.0.1 port=1 connect_timeout=never",
        "postgresql://127.0.0.1:99999/x",
        "postgresql://[::1",
        "mysql://127.0.0.1/x",
        "postgresql://u:p@ss@127.0.0.1:1/x",
        "hostaddr=300.1.1.1 port=1",
        "port=x",
        "sslmode=maybe host=127.0.0.1 port=1",
    ]
) | st.sampled_from(HOSTILE).filter(lambda text: "\x00" not in text)


def one_each(values: st.SearchStrategy[T], things: Sequence[object]) -> st.SearchStrategy[list[T]]:
    """A value for each of them: chosen by chance, half of them would get none."""
    return st.lists(values, min_size=len(things), max_size=len(things))


def call(arguments: Sequence[str]) -> Result:
    """Run a command that ends with 0, 1 or 2, soon, and says why it failed, without a traceback."""
    began = time.monotonic()
    result = CliRunner().invoke(app, list(arguments), prog_name="pgq-anyio")
    assert time.monotonic() - began < 20, arguments
    assert result.exit_code in (0, 1, 2), arguments
    assert "Traceback" not in result.output, arguments
    if result.exit_code:
        assert result.stderr.strip() or result.stdout.strip(), arguments
    return result


@pytest.mark.timeout(120)
@scaled(4)
@given(values=one_each(WORDS | st.sampled_from(AMOUNTS), RUN_OPTIONS))
def test_any_option_of_run(values: list[str]) -> None:
    """It is refused, or the app is not found: nothing starts, and nothing is connected to."""
    for option, value in zip(RUN_OPTIONS, values, strict=True):
        result = call(["run", "tests.fuzz.nothing:app", f"{option}={value}"])
        assert result.exit_code == 2
        assert option[2:] in result.stderr.replace("_", "-") or "tests.fuzz.nothing" in result.stderr


def fetching() -> PgQueuer:
    """The app that ``run`` loads: alone it would find neither its database nor its tables."""
    made = PgQueuer("host=/nowhere")

    @made.entrypoint("fetch")
    def fetch(job: Job) -> None: ...

    return made


@pytest.mark.timeout(120)
def test_any_schema_of_run(dsn: str, schema: str) -> None:
    """The worker looks into the schema that is named and into no other. One that cannot be, or has no tables, is an
    error with its name, and no tables are made.
    """
    arguments = ["run", f"{__name__}:fetching", "--drain", f"--dsn={dsn}"]
    with SyncQueries(dsn, schema=schema) as queries:
        (job_id,) = queries.enqueue("fetch")
        before = counts(dsn, schema)

        @scaled(16)
        @given(name=WORDS)
        def check(name: str) -> None:
            result = call([*arguments, f"--schema={name}"])
            refusal = attempt(Store, name)
            if isinstance(refusal, ConfigurationError):
                assert 2 == result.exit_code
                assert str(refusal) in result.stderr
            else:
                assert 1 == result.exit_code
                assert f"no pgq_anyio tables in the schema {name!r}" in result.stderr
            assert before == counts(dsn, schema), name

        check()
        assert 0 == call([*arguments, f"--schema={schema}"]).exit_code
        assert {job_id: JobStatus.SUCCESSFUL} == queries.job_status([job_id])


@pytest.mark.timeout(120)
@scaled(24)
@example(backend="asyncio")
@example(backend="trio")
@given(backend=st.sampled_from(["ASYNCIO", "Trio", "asyncio ", " trio", "asyncio,trio", "uvloop", "None"]) | WORDS)
def test_any_backend_of_the_demonstration(backend: str) -> None:
    """One that does not exist is refused before a server is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EmbeddedServer", _start_nothing)
        result = call(["demo", f"--backend={backend}"])
    if backend in ("asyncio", "trio"):
        assert 1 == result.exit_code
        assert "would start" in result.stderr
    else:
        assert 2 == result.exit_code
        assert "--backend" in result.stderr


def _start_nothing(**_: object) -> None:
    raise ServerStartError("a server would start")


@pytest.mark.timeout(120)
@scaled(24)
@given(
    dsn=DSNS,
    command=st.sampled_from(
        [("migrate",), ("uninstall", "--yes"), ("jobs", "list"), ("grants", "--read=x", "--apply")]
    ),
)
def test_any_dsn(dsn: str, command: tuple[str, ...]) -> None:
    """One that leads nowhere is an error which quotes no password."""
    result = call([*command, f"--dsn={dsn}"])
    assert result.exit_code in (1, 2)
    assert "p@ss" not in result.output


@pytest.mark.timeout(120)
@scaled(8)
@example(schema="x\rselect 1\nx")
@given(
    schema=st.sampled_from(HOSTILE).map(lambda text: text.replace("\x00", "")) | st.text(string.printable, max_size=9)
)
def test_any_schema(dsn: str, schema: str) -> None:
    """Tables are made under any name that is accepted, and removed again; nothing else is."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        query = "select nspname from pg_namespace where nspname !~ '^(pg_|test_)' order by 1"  # others run tests, too
        before = conn.execute(query).fetchall()
        place = [f"--dsn={dsn}", f"--schema={schema}"]
        if call(["migrate", *place]).exit_code == 0:
            try:
                call(["grants", "--read=nobody at all", "--apply", *place])
                assert 0 == call(["enqueue", "fetch", *place]).exit_code
                assert 0 == call(["migrate", *place]).exit_code
            finally:
                assert 0 == call(["uninstall", "--yes", *place]).exit_code
        else:
            assert 2 == call(["migrate", "--sql", f"--schema={schema}"]).exit_code
        assert before == conn.execute(query).fetchall()


@pytest.mark.timeout(120)
def test_any_arguments(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        restart = sql.SQL("alter sequence {}.job_id_seq restart with {}")
        conn.execute(restart.format(sql.Identifier(schema), FIRST_ID))
    with SyncQueries(dsn, schema=schema) as queries:
        queries.enqueue(["bystander", "former"])
        queries.mark_job_as_cancelled(entrypoint="former")
    before = counts(dsn, schema)

    @scaled(3)
    @given(chosen=one_each(st.tuples(WORDS, WORDS, WORDS), COMMANDS))
    def check(chosen: list[tuple[str, str, str]]) -> None:
        for command, words in zip(COMMANDS, chosen, strict=True):
            arguments = [
                part.replace("{0}", words[0]).replace("{1}", words[1]).replace("{2}", words[2]) for part in command
            ]
            place = [f"--dsn={dsn}", f"--schema={schema}"]
            where = arguments.index("--") if "--" in arguments else len(arguments)
            result = call([*arguments[:where], *place, *arguments[where:]])
            if command[0] == "enqueue" and result.exit_code == 0:
                for table in ("queued", "deferred"):
                    before[table] = counts(dsn, schema)[table]
            assert before == counts(dsn, schema), arguments

    check()
