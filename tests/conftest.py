"""Fixtures of the whole suite: the backends, one PostgreSQL server, one schema per test.

- The server is an embedded one that ends with the run. ``PGQ_ANYIO_TEST_DSN`` takes another one, ``--postgres-bin DIR``
  starts one from the binaries of an installed PostgreSQL (any major version).
- Each test that asks for ``schema`` has one of its own, so tests need no cleanup and never see each other's rows.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgq_anyio._embedded import EmbeddedServer
from tests.bounds import BUSY, Within
from tests.profiles import register_profiles
from tests.schemas import Schemas
from tests.servers import installed_server

if TYPE_CHECKING:
    from pgq_anyio._db import Connection

#: fsync costs time and proves nothing here; synchronous_commit stays on, so that commits keep their order of events.
SERVER_OPTIONS = {"max_connections": "200", "fsync": "off"}
PROMISES = range(1, 50)
BACKENDS = ("asyncio", "uvloop", "trio")
#: The promise whose tests need no event loop: what is refused at registration.
WITHOUT_BACKEND = (22,)

register_profiles()
#: which promise a test has proved, and on which backend
_proved: set[tuple[int, str | None]] = set()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on both backends."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of a PostgreSQL server for the whole run."""
    given = os.environ.get("PGQ_ANYIO_TEST_DSN")
    bin_dir: Path | None = request.config.getoption("--postgres-bin")
    if given is not None:
        yield given
    elif bin_dir is not None:
        with installed_server(bin_dir, SERVER_OPTIONS) as dsn:
            yield dsn
    else:
        with EmbeddedServer(ephemeral=True, options=SERVER_OPTIONS) as dsn:
            yield dsn


@pytest.fixture
def dsn(server_dsn: str) -> str:
    """The DSN for one test."""
    return server_dsn


@pytest.fixture(scope="session")
def schemas(server_dsn: str) -> Iterator[Schemas]:
    """Makes the schemas of the tests."""
    made = Schemas(server_dsn)
    yield made
    made.close()


@pytest.fixture
def empty_schema(schemas: Schemas) -> Iterator[str]:
    """A schema name that nothing else uses; what the test creates under it is dropped afterwards."""
    name = schemas.new_name()
    yield name
    schemas.drop(name)


@pytest.fixture
def schema(schemas: Schemas) -> Iterator[str]:
    """A migrated schema of the test's own."""
    taken = schemas.take()
    yield taken.name
    schemas.give_back(taken)


@pytest.fixture(autouse=True)
def unmeasured_children(request: pytest.FixtureRequest) -> Iterator[None]:
    """What heavy tests start is not measured: hundreds of processes, which would take half as long again. What they
    run is measured where lighter tests start one or two.
    """
    with pytest.MonkeyPatch.context() as environment:  # of its own: a test's is to be undone when the test says so
        if request.node.get_closest_marker("heavy") is not None:
            environment.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
async def conn(anyio_backend: str, server_dsn: str) -> AsyncIterator[Connection]:
    """An open connection, on the backend of the test."""
    from pgq_anyio._db import Connection

    connection = await Connection.connect(server_dsn)
    try:
        yield connection
    finally:
        connection.abort()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres-bin", type=Path, help="directory of the PostgreSQL binaries to test against")
    parser.addoption(
        "--figures", action="store_true", help="hold times exactly, on a machine that does nothing else meanwhile"
    )
    parser.addoption("--promises", action="store_true", help="fail if a promise is not proved by a passed test")


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> bool:
    """Whether figures are to be held exactly; else a test may be content with what shows that the mechanism works."""
    return bool(request.config.getoption("--figures"))


@pytest.fixture(scope="session")
def within(figures: bool) -> Within:
    """Chooses between the bound that is promised and one for a busy machine."""

    def choose(promised: float, otherwise: float = BUSY) -> float:
        return promised if figures else otherwise

    return choose


def pytest_configure() -> None:
    """Forget the database of whoever runs the tests: only what a test sets may decide where it connects."""
    for name in list(os.environ):
        if name == "DATABASE_URL" or (name.startswith("PG") and not name.startswith("PGQ_ANYIO_TEST_")):
            del os.environ[name]


@pytest.hookimpl(tryfirst=True)  # before the markers are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the reports carry the numbers of promises: the tests may run in other processes than the summary. Mark the
    tests that hold figures. Begin with the longest: other processes take what waits behind them.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if "figures" in getattr(item, "fixturenames", ()):
            item.add_marker("figures")
        for marker in item.iter_markers("promise"):
            item.user_properties.extend(("promise", number) for number in marker.args)
            item.user_properties.extend(("backend", backend) for backend in backends_of(item))


def backends_of(item: pytest.Item) -> set[str]:
    """What a test runs on: one of them, several (``uvloop+asyncio``), or, if it has no such parameter, none."""
    found: set[str] = set()
    callspec = getattr(item, "callspec", None)
    for value in () if callspec is None else callspec.params.values():
        if isinstance(value, str):
            found.update(value.split("+"))
        elif isinstance(value, tuple) and value and value[0] in BACKENDS:
            found.add("uvloop" if value[1].get("use_uvloop") else value[0])
    return found & {*BACKENDS}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        promises = [value for name, value in report.user_properties if name == "promise" and isinstance(value, int)]
        backends = [value for name, value in report.user_properties if name == "backend" and isinstance(value, str)]
        _proved.update((number, backend) for number in promises for backend in (None, *backends))


def unproved() -> list[str]:
    """The promises that no passed test proves, with the backend that lacks one."""
    return [
        f"{number} ({backend})" if backend else str(number)
        for number in PROMISES
        for backend in ((None,) if number in WITHOUT_BACKEND else BACKENDS)
        if (number, backend) not in _proved
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A promise that no test proves is a failure."""
    is_summary = not hasattr(session.config, "workerinput")
    if session.config.getoption("--promises") and is_summary and not session.exitstatus and unproved():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--promises"):
        terminalreporter.write_line(f"promises without a passed test: {', '.join(unproved()) or 'none'}")
