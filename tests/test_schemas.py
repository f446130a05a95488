"""A schema serves another test only when nothing tells that from a new one."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgq_anyio import SyncQueries
from tests.embedded.children import wait_until
from tests.schemas import BETWEEN, STATE, Schemas, Used


@pytest.fixture
def schemas(server_dsn: str) -> Iterator[Schemas]:
    """With as many used schemas as lie between two uses of one."""
    made = Schemas(server_dsn)
    taken = [made.take() for _ in range(BETWEEN)]
    for used in taken:
        made.give_back(used)
    yield made
    made.close()


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def take_after(schemas: Schemas, first: Used) -> Used:
    """The schema that is taken when it is the turn of the one that is given back."""
    schemas._used.appendleft(first)
    return schemas.take()


def test_rows_are_removed_and_ids_begin_again(schemas: Schemas, dsn: str) -> None:
    """What a test did with jobs is gone."""
    first = schemas.take()
    state = schemas._connect().execute
    for _ in range(2):
        with SyncQueries(dsn, schema=first.name) as queries:
            assert [1, 2] == queries.enqueue(["fetch"] * 2)
        wait_until(lambda: state(STATE, {"schema": first.name}).fetchall() == [(False, True)])
        assert first == take_after(schemas, first)


@pytest.mark.parametrize(
    "change",
    [
        "alter table {}.queued add column more int",
        "alter table {}.queued set (fillfactor = 50)",
        "alter table {}.queued alter column payload set not null",
        "alter table {}.queued add check (priority > 0)",
        "create index on {}.queued (payload)",
        "drop index {}.queued_lane",
        "create table {}.more ()",
        "create function {}.more() returns int language sql as 'select 1'",
        "grant select on {}.queued to public",
        "grant usage on schema {} to public",
        "insert into {0}.worker select * from {0}.worker; analyze {0}.migration",
        "insert into {}.migration (name) values ('999_future')",
        "drop schema {} cascade",
    ],
)
def test_a_changed_schema_is_dropped(schemas: Schemas, connection: psycopg.Connection, change: str) -> None:
    """What was defined, granted, analysed or migrated otherwise is not for the next test."""
    first = schemas.take()
    connection.execute(change.format(first.name).encode())
    connection.execute("select")  # the change is no longer this session's last statement
    assert first.name != take_after(schemas, first).name
    assert [(None,)] == connection.execute("select to_regnamespace(%s)", [first.name]).fetchall()


def test_a_schema_in_use_is_dropped(schemas: Schemas, connection: psycopg.Connection) -> None:
    """A session that a test has left may go on with what it did."""
    first = schemas.take()
    connection.execute(f"select from {first.name}.queued".encode())
    assert first.name != take_after(schemas, first).name


def test_others_lie_between(schemas: Schemas) -> None:
    """A schema is not taken as soon as it has been given back."""
    names = []
    for _ in range(2 * BETWEEN):
        used = schemas.take()
        names.append(used.name)
        schemas.give_back(used)
    assert BETWEEN < len(set(names)) == names.index(names[0], 1)
