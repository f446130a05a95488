"""``--direct-dsn``: the way that notifications take."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import PgQueuer, PsycopgDriver
from pgq_anyio._errors import ConfigurationError
from tests.cli.processes import Commands
from tests.worker.fleet import Fleet, wait_until
from tests.worker.proxy import open_proxy


def test_only_the_listener_takes_it(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """It is said where notifications come from, and everything else stays on the way of ``--dsn``."""
    with open_proxy(fleet.dsn) as proxy:
        worker = commands.start_worker(fleet.schema, *loop, f"--direct-dsn={proxy.dsn}")
        assert "listening for notifications on" in worker.output
        assert ["listen"] == proxy.roles()
        wait_until(lambda: fleet.value("select sleeping from {schema}.worker"))
        (job_id,) = fleet.enqueue("quick")
        wait_until(lambda: fleet.status(job_id))


def test_it_is_no_option_of_a_driver(dsn: str, schema: str) -> None:
    """A driver has a direct way of its own, or none; an option that did nothing would be misleading."""
    app = PgQueuer(PsycopgDriver(dsn), schema=schema)
    app._redirect(None, None, dsn)
    with pytest.raises(ConfigurationError, match=r"give that one direct_conninfo, or name the database with --dsn"):
        anyio.run(app.run)
