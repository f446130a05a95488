"""What a connection gets if its DSN does not say otherwise, asynchronous or blocking."""

from __future__ import annotations

import os
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

#: A server that does not answer is given up after ten seconds. A peer that is gone without a word, as after a crash of
#: its machine, is noticed within 30 seconds.
DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
#: libpq's variables for the same.
_VARIABLES: Final = {"connect_timeout": "PGCONNECT_TIMEOUT", "application_name": "PGAPPNAME"}


def defaults_for(conninfo: str, **others: str) -> dict[str, str]:
    """The parameters that neither the DSN nor the environment sets, and the encoding, which is UTF-8 in any case: what
    a database of another one cannot keep is then an error of its statement, and not of everything that writes texts.

    :param conninfo: a DSN in either of libpq's forms
    :param others: further parameters that are defaults only
    """
    given = conninfo_to_dict(conninfo)
    defaults = {
        name: value
        for name, value in {**DEFAULTS, **others}.items()
        if name not in given and not os.environ.get(_VARIABLES.get(name, ""))
    }
    return {**defaults, "client_encoding": "utf8"}


def connect_blocking(conninfo: str, **options: Any) -> psycopg.Connection[Any]:
    """Open a connection that blocks, in autocommit mode; for programs without an event loop.

    :param options: further arguments of ``psycopg.connect``
    :raises psycopg.OperationalError: if the server cannot be reached
    """
    return psycopg.connect(conninfo, autocommit=True, **{**defaults_for(conninfo), **options})
