"""Fixtures of the fault suite, and the time limits of its long form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.rows import LONG
from tests.faults.scene import Scene, open_scene
from tests.worker.own_server import OwnServer, open_own_server
from tests.worker.proxy import Proxy, open_proxy

#: One scenario of the long form may take this long (in seconds).
LONG_LIMIT = 1800
HERE = Path(__file__).parent

#: Makes the scene of a test: ``make_scene(3, "the server is restarted", bound=10)``.
SceneMaker = Callable[..., Scene]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long form takes longer than other tests."""
    for item in items:
        if LONG and HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LONG_LIMIT))


@pytest.fixture
def make_scene(server_dsn: str, schema: str) -> Iterator[SceneMaker]:
    """Makes a scene on the server of the run, which the scenario leaves alone."""
    with ExitStack() as stack:
        yield lambda number, title, **options: stack.enter_context(
            open_scene(server_dsn, schema, server_dsn, number=number, title=title, **options)
        )


@pytest.fixture(scope="session")
def _own_server(server_dsn: str) -> Iterator[OwnServer]:
    with open_own_server(server_dsn, log_statement="none", wal_writer_delay="200ms") as server:
        yield server


@pytest.fixture
def own_server(_own_server: OwnServer, empty_schema: str) -> OwnServer:
    """A running server that the scenario may stop and kill, with the tables of the schema ``empty_schema``."""
    _own_server.start()
    _own_server.migrate(empty_schema)
    return _own_server


@pytest.fixture
def make_own_scene(own_server: OwnServer, server_dsn: str, empty_schema: str) -> Iterator[SceneMaker]:
    """Makes a scene on a server that the scenario may stop and kill."""
    with ExitStack() as stack:

        def make(number: int, title: str, **options: object) -> Scene:
            scene = stack.enter_context(
                open_scene(own_server.dsn, empty_schema, server_dsn, number=number, title=title, **options)  # type: ignore[arg-type]
            )

            def bring_back() -> None:
                own_server.start()
                scene.fleet.reconnect()

            stack.callback(bring_back)
            return scene

        yield make


@pytest.fixture
def proxy(server_dsn: str) -> Iterator[Proxy]:
    """A proxy before the server of the run."""
    with open_proxy(server_dsn) as proxy:
        yield proxy
