"""What the driver and the tools for tests are given on the way to a database: an error, or a connection that works."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given
from hypothesis import strategies as st

from pgq_anyio import ConfigurationError, PsycopgDriver
from pgq_anyio._db.pool import PoolTimeout
from pgq_anyio._embedded import _server
from pgq_anyio._embedded._account import Account
from pgq_anyio._embedded._room import make_temporary_room
from pgq_anyio.testing import temporary_database
from tests.fuzz.test_options import DURATIONS
from tests.fuzz.values import HOSTILE
from tests.profiles import scaled

pytestmark = pytest.mark.heavy


def test_any_timeout_of_the_pool(anyio_backend: str, dsn: str) -> None:
    """A number of seconds is waited for a connection that is free, or for one that is not; nothing else takes a place
    in the pool.
    """

    async def take(driver: PsycopgDriver, timeout: Any) -> Exception | None:
        with anyio.fail_after(20):
            try:
                async with driver.connection(timeout) as connection:
                    await connection.execute("select 1")
            except (PoolTimeout, ConfigurationError) as error:
                return error
        return None

    async def spoil(driver: PsycopgDriver) -> None:
        with pytest.raises(ZeroDivisionError):
            async with driver.connection(20):
                raise ZeroDivisionError

    async def take_from_none(driver: PsycopgDriver, timeout: Any) -> Exception | None:
        async with driver.connection():
            return await take(driver, timeout)

    with (
        start_blocking_portal(anyio_backend) as portal,
        portal.wrap_async_context_manager(PsycopgDriver(dsn, max_size=1)) as driver,
    ):

        @scaled(60)
        @example(timeout=None)
        @example(timeout=math.inf)
        @given(timeout=DURATIONS | st.floats(1e-6, 1e-4))
        def check(timeout: Any) -> None:
            portal.call(spoil, driver)  # so that the server is asked whether the connection works, which takes time
            answer = portal.call(take, driver, timeout)
            is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
            if timeout is None or (is_number and 20 <= timeout < 1e9):
                assert answer is None
            elif is_number and timeout <= 0:
                assert isinstance(answer, PoolTimeout | ConfigurationError)
                assert type(answer) is type(portal.call(take_from_none, driver, timeout))
            elif isinstance(timeout, str | bytes | list):
                assert isinstance(answer, ConfigurationError)
            assert portal.call(take, driver, 20) is None

        check()


async def refusal_of(driver: PsycopgDriver, role: str) -> str | None:
    """What is said if a connection with this role is not opened."""
    try:
        with anyio.fail_after(20):
            await (await driver.connect(role=role)).close()
    except (psycopg.Error, ConfigurationError) as error:
        return str(error)
    return None


@pytest.mark.anyio
async def test_any_role_of_a_connection(dsn: str) -> None:
    """It is the end of the connection's name and changes nothing else, or the connection is not opened."""
    query = "select current_database(), current_user, current_setting('application_name')"
    async with PsycopgDriver(f"{dsn} password=hunter2") as driver:
        async with driver.connection() as own:
            ((*place, _),) = await (await own.execute(query)).fetchall()
        for role in (*HOSTILE, "' dbname=template1", " host=/nowhere dbname=template1", "' options='-c role=nobody"):
            if not role.isprintable() or len(role) > 1000:
                told = await refusal_of(driver, role)
                assert told is None or "hunter2" not in told
                assert role.isprintable() or "role must be a printable text" in str(told)
                continue
            connection = await driver.connect(role=role)
            ((*found, name),) = await (await connection.execute(query)).fetchall()
            await connection.close()
            assert place == found
            assert not role.isascii() or f"pgq_anyio {role}"[:63] == name


@pytest.mark.parametrize(
    "options",
    [
        *({name: "x", "work_mem": "4MB"} for name in sorted(_server.RESERVED)),
        # PostgreSQL reads names of settings without regard to case, and a hyphen as an underscore.
        *({name: "127.0.0.1"} for name in ("Listen_Addresses", "listen-addresses", "listen_addresses=127.0.0.1,")),
        *(7, "port", b"port", [None], object(), ["port"], [("work_mem", "4MB")]),
        *({"work_mem": value} for value in (object(), b"4MB", {4}, len, "\x00")),
        {("work_mem",): "4MB"},
    ],
)
def test_options_that_no_server_can_have(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before a server is started, and leave no directory."""
    rooms: list[Path] = []

    def make_room(parent: Path | None, account: Account | None) -> Path:
        rooms.append(make_temporary_room(parent, account))
        return rooms[-1]

    monkeypatch.setattr(_server, "make_temporary_room", make_room)
    with pytest.raises(ConfigurationError), temporary_database(options):
        pytest.fail("a server was started")
    assert not any(room.exists() for room in rooms)


def test_options_that_look_like_something_else() -> None:
    """A value reaches the server as it is written, whatever it would be in a shell, in SQL or in a format."""
    options = {
        "search_path": '"; drop schema public cascade; --"',
        "log_line_prefix": "'; $(id) %% {schema}\n -c port=1 ",
    }
    with temporary_database(options) as dsn, psycopg.connect(dsn) as connection:
        for name, value in options.items():
            assert (value,) == connection.execute("select current_setting(%s)", [name]).fetchone()
        assert ("public",) in connection.execute("select nspname from pg_namespace").fetchall()
