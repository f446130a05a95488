"""Commands whose database is gone without a word end with an error that says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from pgq_anyio._cli.program import app
from pgq_anyio._db.defaults import DEFAULTS
from tests.client.test_gone import SHORT, open_bounded_proxy
from tests.worker.proxy import VANISHES, Proxy


@pytest.fixture
def proxy(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in SHORT.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    with open_bounded_proxy(dsn) as proxy:
        yield proxy


def call(proxy: Proxy, schema: str, *arguments: str) -> str:
    """Run a command that fails; what it says."""
    result = CliRunner().invoke(app, [*arguments, f"--dsn={proxy.dsn}", f"--schema={schema}"], prog_name="pgq-anyio")
    assert 1 == result.exit_code
    return result.stderr


@pytest.mark.parametrize(
    "arguments", [("enqueue", "fetch"), ("migrate",), ("grants", "--read=somebody", "--apply")], ids=lambda a: a[0]
)
def test_a_database_that_does_not_answer(proxy: Proxy, schema: str, arguments: tuple[str, ...]) -> None:
    """It accepts the connection and says nothing."""
    proxy.silence()
    said = call(proxy, schema, *arguments)
    assert "cannot be reached" in said
    assert "timeout" in said


@VANISHES
def test_a_database_that_is_gone_in_the_middle(proxy: Proxy, schema: str) -> None:
    """It vanishes with the statement."""

    def watch(_: str, data: bytes) -> None:
        if b"pg_catalog.nextval" in data:
            proxy.vanish()

    proxy.watch(watch)
    said = call(proxy, schema, "enqueue", "fetch")
    assert "cannot be reached" in said
    assert "timed out" in said
