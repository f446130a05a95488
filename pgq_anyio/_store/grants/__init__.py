"""What each role of the database needs, and no more, as SQL for whoever may grant it.

There is one file for each purpose. A role gets what the purposes need for which it is named, after everything that it
had in the schema before was taken away: grants of earlier versions, or for other purposes, do not pile up. The role
that owns the tables is left as it is, because nobody can take anything from an owner but the owner himself.

Roles are not made here: whether they log in, and how, is not ours to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Any, Final, LiteralString, cast

from psycopg import sql

from ..._errors import ConfigurationError
from .._sql import Store

#: Whoever may grant is worth an attack: nothing in a schema of somebody else's is taken for a function of PostgreSQL's.
_BEGIN: Final = "begin;\nset local search_path = pg_catalog, pg_temp;\n"


class Purpose(Enum):
    """What a role is for, in the order in which its grants are given."""

    MIGRATE = "migrate"
    PRODUCE = "produce"
    OPERATE = "operate"
    WORK = "work"
    READ = "read"


def grants_sql(schema: str, roles: Mapping[Purpose, Iterable[str]]) -> LiteralString:
    """One transaction that gives the roles what they need.

    :param schema: the name of the schema. Its tables must be there, unless a role is only to migrate.
    :param roles: the roles for each purpose; one may have several purposes
    :raises ConfigurationError: if the schema or a role cannot be the name of one
    """
    store = Store(schema)
    named = {purpose: [_check(role) for role in dict.fromkeys(roles.get(purpose, ()))] for purpose in Purpose}
    owners = named[Purpose.MIGRATE]
    if len(owners) > 1:
        raise ConfigurationError(f"the tables have one owner: name one role to migrate, not {', '.join(owners)}")
    parts = [("migrate", role) for role in owners]
    parts += [("revoke", role) for role in dict.fromkeys(role for some in named.values() for role in some)]
    parts += [(purpose.value, role) for purpose in Purpose for role in named[purpose]]
    parts = [part for part in dict.fromkeys(parts) if part[0] == "migrate" or part[1] not in owners]
    texts = [_bind(store, _text(name), role) for name, role in parts]
    return "".join([_BEGIN, *(f"\n{text}" for text in texts), "\ncommit;\n"])


def _bind(store: Store, text: LiteralString, role: str) -> LiteralString:
    """Put the names of a schema and a role into a text; in comments too, where a line break must not end one."""
    bound = sql.SQL(text).format(
        schema=sql.Identifier(store.schema),
        schema_name=sql.Literal(store.schema),
        role=sql.Identifier(role),
        role_name=sql.Literal(role),
    )
    return bound.as_string(None)


def _check(role: str) -> str:
    # A line break could end a comment, and a dollar sign the body of a block.
    if not role or not role.isprintable() or "$" in role:
        raise ConfigurationError(f"a role must have a name without line breaks and dollar signs, not {role!r}")
    if len(role.encode("utf-8", "replace")) > 63:
        raise ConfigurationError(f"the role {role!r} is longer than 63 bytes")
    return role


@cache
def _text(name: str) -> LiteralString:
    """A file of ours, which nobody else can have written."""
    text: LiteralString = cast("Any", (files(__package__) / f"{name}.sql").read_text("utf-8"))
    return text
