"""Which database is used, and that no secret is shown."""

from __future__ import annotations

import pytest

from pgq_anyio._errors import ConfigurationError
from pgq_anyio._settings import PG_VARIABLES, DatabaseSource, find_database, find_direct_dsn, redacted

EVERYTHING = {"PGQ_ANYIO_DSN": "dbname=own", "DATABASE_URL": "postgres:///web", "PGHOST": "pg.example"}


def test_order() -> None:
    """Argument, PGQ_ANYIO_DSN, DATABASE_URL, PG* variables, embedded: the first that is set decides."""
    environ = dict(EVERYTHING)
    assert DatabaseSource("dbname=arg", "--dsn") == find_database("dbname=arg", environ)
    assert DatabaseSource("dbname=own", "PGQ_ANYIO_DSN") == find_database(None, environ)
    del environ["PGQ_ANYIO_DSN"]
    assert DatabaseSource("postgresql:///web", "DATABASE_URL") == find_database(None, environ)
    del environ["DATABASE_URL"]
    assert DatabaseSource("", "PG* variables") == find_database(None, environ)
    del environ["PGHOST"]
    assert DatabaseSource(None, "embedded") == find_database(None, environ)
    assert find_database(None, environ).is_embedded


def test_the_direct_dsn() -> None:
    """The option goes before the variable; it stands beside a database, and its errors name where it was found."""
    source, name = DatabaseSource("dbname=own", "--dsn"), "PGQ_ANYIO_DIRECT_DSN"
    assert "dbname=arg" == find_direct_dsn("dbname=arg", {name: "dbname=env"}, source)
    assert "postgresql://h/env" == find_direct_dsn(None, {name: "postgres://h/env"}, source)
    assert find_direct_dsn(None, {name: " "}, source) is None
    assert find_direct_dsn(None, {}, DatabaseSource(None, "embedded")) is None
    with pytest.raises(ConfigurationError, match="--direct-dsn is empty: write a DSN, or leave it out"):
        find_direct_dsn(" ", {}, source)
    with pytest.raises(
        ConfigurationError, match=f"{name} names a database that is not PostgreSQL .*: write a postgresql:// URL"
    ):
        find_direct_dsn(None, {name: "mysql://h/d"}, source)
    with pytest.raises(ConfigurationError, match=f"{name} names a way around .* name it with --dsn or PGQ_ANYIO_DSN"):
        find_direct_dsn(None, {name: "dbname=env"}, DatabaseSource(None, "embedded"))


@pytest.mark.parametrize("name", PG_VARIABLES)
def test_where(name: str) -> None:
    """A PG* variable that says where a database is chooses it."""
    assert "PG* variables" == find_database(None, {name: "x"}).origin


@pytest.mark.parametrize("name", ["PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSSLMODE", "PGAPPNAME", "PGOPTIONS"])
def test_how(name: str) -> None:
    """A PG* variable that only says how to connect chooses nothing."""
    assert "embedded" == find_database(None, {name: "x"}).origin


@pytest.mark.parametrize("name", ["PGQ_ANYIO_DSN", "DATABASE_URL", "PGHOST"])
@pytest.mark.parametrize("value", ["", " "])
def test_set_to_nothing(name: str, value: str) -> None:
    """A variable set to nothing counts as not set."""
    if name != "PGHOST" or not value:
        assert "embedded" == find_database(None, {name: value}).origin


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u@h:5/d?sslmode=require", "postgresql://u@h:5/d?sslmode=require"),
        ("postgresql+psycopg://u@h/d", "postgresql://u@h/d"),
        ("postgresql+asyncpg://u@h1,h2/d", "postgresql://u@h1,h2/d"),
        ("PostgreSQL://h/d", "postgresql://h/d"),
        ("postgresql://u@[::1]:5/d", "postgresql://u@[::1]:5/d"),
        ("postgresql://u:a%40b@/d?host=/run/pg", "postgresql://u:a%40b@/d?host=/run/pg"),
        ("host=a,b port=1,2 dbname=d", "host=a,b port=1,2 dbname=d"),
        (" host='/a b' ", "host='/a b'"),
        ("service=mine", "service=mine"),
    ],
)
def test_forms(written: str, read: str) -> None:
    """URLs with the schemes of web frameworks and libpq's keyword form are understood."""
    assert read == find_database(None, {"DATABASE_URL": written}).conninfo


@pytest.mark.parametrize("written", ["mysql://u:hunter2@h/d", "sqlite:///x.db", "http://h", "jdbc-x://h"])
def test_not_postgresql(written: str) -> None:
    """Another database is refused: the message names the variable, the scheme, and what to set."""
    with pytest.raises(ConfigurationError, match=r"DATABASE_URL .*not PostgreSQL.*PGQ_ANYIO_DSN") as caught:
        find_database(None, {"DATABASE_URL": written})
    assert written.split(":", maxsplit=1)[0] in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "hunter2",
        "host=h hunter2",
        "hunter2=h",
        "host=h password='hunter2",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:hunter2@[::1/d",
        "postgresql://u:a@b:hunter2/d",
        "postgresql://u:a@b/hunter2@h/d",
        "postgresql://h/d?password=hunter2&x",
        'postgresql://h/d?password=hunter2&a"b=c',
    ],
)
def test_nonsense(written: str) -> None:
    """What is no DSN is refused where it was found; no piece of it that may be secret is quoted."""
    for source in ("--dsn", "PGQ_ANYIO_DSN"):
        with pytest.raises(ConfigurationError, match=f"^{source} is not a DSN") as caught:
            find_database(*((written, {}) if source == "--dsn" else (None, {source: written})))
        assert caught.value.__context__ is None
        if not written.startswith("hunter2="):  # the name of an unknown parameter is what one needs to know
            assert "hunter2" not in str(caught.value)


def test_unknown_parameter() -> None:
    """The name of a parameter that libpq does not know is said."""
    with pytest.raises(ConfigurationError, match='"ssl"'):
        find_database("postgresql://h/d?ssl=require", {})


def test_empty_argument() -> None:
    """An empty argument is a slip (an unset shell variable) and not a choice."""
    with pytest.raises(ConfigurationError, match="source is empty"):
        find_database("", EVERYTHING, argument_name="source")


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://u:hunter2@h/d", "host=h password=hunter2", "host=h sslkey=k sslpassword=hunter2", "x hunter2"],
)
def test_redacted(dsn: str) -> None:
    """Secrets are shown neither by ``redacted`` nor by the source's repr and str."""
    assert "hunter2" not in redacted(dsn)
    assert "hunter2" not in repr(DatabaseSource(dsn, "--dsn"))
    assert "hunter2" not in str(DatabaseSource(dsn, "--dsn"))


def test_redacted_keeps_the_rest() -> None:
    """What is no secret can be read."""
    assert "user=u password=*** dbname=d host=h" == redacted("postgresql://u:hunter2@h/d")
    assert "DatabaseSource(conninfo=None, origin='embedded')" == repr(DatabaseSource(None, "embedded"))
