"""Commands, given anything: they end with 0, 1 or 2, say something, show no traceback, and change nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pgq_anyio import SyncQueries
from pgq_anyio._cli.program import app
from tests.fuzz.test_functions import counts
from tests.fuzz.values import HOSTILE, NUMBERS, TEXTS
from tests.profiles import scaled

#: As a shell can pass them: no NUL.
WORDS = (st.sampled_from(HOSTILE) | NUMBERS.map(str) | TEXTS).map(lambda text: text.replace("\x00", ""))
COMMANDS = st.sampled_from(
    [
        ("enqueue", "{0}", "--priority={1}", "--delay=3{2}"),
        ("enqueue", "fetch", "--at={0}", "--priority={1}"),
        ("enqueue", "fetch", "--times={0}{1}"),
        ("cancel", "--", "{0}", "{1}"),
        ("cancel", "--yes", "--entrypoint={0}", "--older-than={1}"),
        ("cancel", "--yes", "--status={0}"),
        ("jobs", "requeue", "--yes", "--entrypoint={0}", "--after={1}"),
        ("jobs", "requeue", "--yes", "--error={0}", "--limit={1}"),
        ("jobs", "list", "--entrypoint={0}", "--before={1}"),
        ("jobs", "list", "--limit={0}", "--status={1}"),
        ("jobs", "show", "--", "{0}"),
        ("schedules", "pause", "--", "{0}", "{1}"),
        ("run", "{0}", "--lease={1}"),
        ("run", "json:{0}"),
        ("{0}", "{1}"),
    ]
)


@pytest.mark.timeout(0)
def test_any_arguments(dsn: str, schema: str) -> None:
    with SyncQueries(dsn, schema=schema) as queries:
        queries.enqueue("bystander")
    before = counts(dsn, schema)

    @scaled(60)
    @given(command=COMMANDS, words=st.tuples(WORDS, WORDS, WORDS))
    def check(command: tuple[str, ...], words: tuple[str, str, str]) -> None:
        arguments = [
            part.replace("{0}", words[0]).replace("{1}", words[1]).replace("{2}", words[2]) for part in command
        ]
        place = [f"--dsn={dsn}", f"--schema={schema}"]
        where = arguments.index("--") if "--" in arguments else len(arguments)
        result = CliRunner().invoke(app, [*arguments[:where], *place, *arguments[where:]], prog_name="pgq-anyio")
        assert result.exit_code in (0, 1, 2), arguments
        assert "Traceback" not in result.output, arguments
        if result.exit_code:
            assert result.stderr.strip() or result.stdout.strip(), arguments
        if command[0] == "enqueue" and result.exit_code == 0:
            for table in ("queued", "deferred"):
                before[table] = counts(dsn, schema)[table]
        assert before == counts(dsn, schema), arguments

    check()
