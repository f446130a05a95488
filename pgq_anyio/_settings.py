"""Where the database is: from the argument, the environment, or nowhere, which means the embedded one.

The order: the argument (``--dsn``), ``PGQ_ANYIO_DSN``, ``DATABASE_URL``, libpq's ``PG*`` variables, the embedded
database. The first that is set decides; one that is set to nonsense is an error and not skipped, because jobs in
another database than the one meant are worse than no start. A variable that is set to nothing counts as not set.

A second DSN, the *direct* one (``--direct-dsn``, ``PGQ_ANYIO_DIRECT_DSN``), is another way to the same database, around
a pooler, for listening to notifications.

Of the ``PG*`` variables those count that say *where* (``PG_VARIABLES``). ``PGUSER``, ``PGPASSWORD``, ``PGSSLMODE`` and
the others say only *how*: many people have them in their profile with no server in mind, so alone they do not choose
one, and beside a DSN libpq adds them as usual.

``DATABASE_URL`` belongs to web frameworks: the schemes ``postgres://`` and ``postgresql+<driver>://`` are understood.
A message never quotes a DSN, since a password that was not escaped can be anywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ._errors import ConfigurationError

#: Variables of libpq that say where a database is.
PG_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")

#: Parameters of libpq whose values nobody may see.
SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def redacted(conninfo: str) -> str:
    """Write a DSN so that it can be shown: in keyword form, secrets replaced by ``***``.

    :param conninfo: a DSN in either of libpq's forms
    """
    try:
        parts = conninfo_to_dict(conninfo)
    except ProgrammingError:
        parts = None
    if parts is None or _looks_torn(parts):
        return "<DSN that cannot be read>"
    return make_conninfo("", **{name: "***" if name in SECRETS else value for name, value in parts.items()})


@attrs.frozen
class DatabaseSource:
    """The answer to "which database, and who says so"."""

    #: What to connect to; ``None`` means the embedded database. Not shown in full.
    conninfo: str | None = attrs.field(repr=lambda value: "None" if value is None else repr(redacted(value)))
    #: Where that was found: ``--dsn``, a variable's name, ``PG* variables`` or ``embedded``.
    origin: str

    @property
    def is_embedded(self) -> bool:
        return self.conninfo is None


def find_database(argument: str | None, environ: Mapping[str, str], *, argument_name: str = "--dsn") -> DatabaseSource:
    """Decide which database to use. Nothing is connected.

    :param argument: a DSN that was passed, or ``None``
    :param environ: the environment, usually ``os.environ``
    :param argument_name: what the argument is called, for messages. Defaults to ``--dsn``.
    :raises ConfigurationError: if the first DSN found cannot be used; the message names where it was found
    """
    if argument is not None:
        if not argument.strip():
            raise ConfigurationError(
                f"{argument_name} is empty: write a DSN, or leave it out to use the environment or the embedded one"
            )
        return DatabaseSource(read_dsn(argument, argument_name), argument_name)
    for name in ("PGQ_ANYIO_DSN", "DATABASE_URL"):
        if environ.get(name, "").strip():
            return DatabaseSource(read_dsn(environ[name], name), name)
    if any(environ.get(name) for name in PG_VARIABLES):
        return DatabaseSource("", "PG* variables")  # libpq reads them itself
    return DatabaseSource(None, "embedded")


def find_direct_dsn(argument: str | None, environ: Mapping[str, str], source: DatabaseSource) -> str | None:
    """Decide on which way to listen for notifications. Nothing is connected.

    :param argument: a DSN that was passed with ``--direct-dsn``, or ``None``
    :param environ: the environment, usually ``os.environ``
    :param source: which database is used
    :return: ``None`` for the way that everything takes
    :raises ConfigurationError: if it cannot be used, or there is no other DSN; the message names where it was found
    """
    origin = "--direct-dsn" if argument is not None else "PGQ_ANYIO_DIRECT_DSN"
    dsn = environ.get(origin, "") if argument is None else argument
    if not dsn.strip():
        if argument is not None:
            raise ConfigurationError(f"{origin} is empty: write a DSN, or leave it out")
        return None
    if source.is_embedded:
        raise ConfigurationError(
            f"{origin} names a way around the pooler of a database, and there is no database: "
            "name it with --dsn or PGQ_ANYIO_DSN"
        )
    return read_dsn(dsn, origin)


def read_dsn(dsn: str, origin: str) -> str:
    """Check a DSN and bring it into a form that libpq reads.

    :param dsn: a URL or libpq's keyword form
    :param origin: where it was found, for messages
    :raises ConfigurationError: if it is none, or not one of PostgreSQL
    """
    if not isinstance(dsn, str):
        raise ConfigurationError(f"{origin} must be a DSN (a str), not a {type(dsn).__name__}")
    try:
        dsn.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{origin} is not valid Unicode: write bytes of a password as in %E4") from None
    if "\x00" in dsn:  # libpq would read up to there
        raise ConfigurationError(f"{origin} has a NUL in it")
    dsn = dsn.strip()
    scheme = _SCHEME.match(dsn)
    if scheme is not None:
        dialect = scheme[1].lower().split("+")[0]
        if dialect not in ("postgres", "postgresql"):
            # DATABASE_URL may be meant for something else.
            fix = "set PGQ_ANYIO_DSN to" if origin == "DATABASE_URL" else "write"
            raise ConfigurationError(
                f"{origin} names a database that is not PostgreSQL ({scheme[1]}://): {fix} a postgresql:// URL"
            )
        dsn = "postgresql://" + dsn[scheme.end() :]
    try:
        parts = conninfo_to_dict(dsn)
        reason = "an '@', ':', '/' or space is missing or stands where none belongs" if _looks_torn(parts) else ""
    except ProgrammingError as error:
        reason = _reason(error)
    if reason:
        raise ConfigurationError(
            f"{origin} is not a DSN that PostgreSQL understands ({reason}): write "
            "'postgresql://user:password@host:port/database', with special characters of the password as in %40 "
            "for '@', or 'host=… dbname=…'"
        )
    return dsn


def _looks_torn(parts: Mapping[str, object]) -> bool:
    """Whether a password may stand where none belongs: an ``@``, ``:`` or ``/`` of it that was not escaped has split a
    URL at the wrong place, or a space is missing before it.
    """
    places = (str(parts.get("host") or ""), str(parts.get("dbname") or ""))
    ports = str(parts.get("port") or "").split(",")
    shown = "\n".join(str(value) for name, value in parts.items() if name not in SECRETS)
    return (
        any("@" in place[1:] for place in places)
        or any(port and not port.isdecimal() for port in ports)
        or any(f"{name}=" in shown for name in SECRETS)
    )


def _reason(error: ProgrammingError) -> str:
    """What libpq says, without the piece of the DSN that it quotes, except the name of an unknown parameter."""
    said = str(error).strip()
    if re.fullmatch(r'invalid (URI query parameter: |connection option )"[a-z_]+"', said):
        return said
    return re.sub(r'".*"', '"…"', said, flags=re.DOTALL)
