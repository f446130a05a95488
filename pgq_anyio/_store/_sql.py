"""Statements from the ``.sql`` files beside this module, bound to one schema.

A file holds named blocks: ``-- name: claim_sweep`` starts one. The schema goes in once, here, as a quoted identifier,
so that hostile names are harmless; the notification channel and the sequences as quoted literals. Nothing else is ever
spliced into SQL. No comment has a name in it: a line break there would end the comment, and the rest of the name would
be a statement.

Blocks that producers and operators use run on connections of theirs, with any search path. There every function,
operator and type that is not part of the grammar is PostgreSQL's by name (``pg_catalog.now()``,
``operator(pg_catalog.=)``; an ``unnest`` of several arrays is part of the grammar). The others run on the worker's own
connections, whose search path holds nothing else.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final, LiteralString

import attrs
from psycopg import sql

from .._db import Statement
from .._errors import ConfigurationError

DEFAULT_SCHEMA: Final = "pgq_anyio"
#: PostgreSQL cuts identifiers, channel names among them, at 63 bytes.
_MAX_IDENTIFIER: Final = 63
_CHANNEL_PREFIX: Final = "pgq_anyio."


@attrs.frozen
class Store:
    """The statements of one schema."""

    schema: str = attrs.field()
    _statements: dict[str, Statement] = attrs.field(factory=dict, init=False, eq=False, repr=False)
    #: binding a text takes 20 µs, a twentieth of what a single enqueue does
    _texts: dict[str, LiteralString] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @schema.validator
    def _check_schema(self, _: object, schema: object) -> None:
        longest = _MAX_IDENTIFIER - len(_CHANNEL_PREFIX)
        if not isinstance(schema, str) or not schema or "\x00" in schema:
            raise ConfigurationError(f"the schema must be a name, not {schema!r}")
        if "$" in schema:  # it could end the dollar-quoted bodies of functions
            raise ConfigurationError(f"the schema name {schema!r} has a dollar sign, which is not supported")
        try:
            size = len(schema.encode())
        except UnicodeEncodeError:
            raise ConfigurationError(f"the schema name {schema!r} is not valid Unicode") from None
        if size > longest:
            raise ConfigurationError(f"the schema name {schema!r} is longer than {longest} bytes")

    @property
    def channel(self) -> str:
        """The notification channel of this schema."""
        return _CHANNEL_PREFIX + self.schema

    def sql(self, name: str) -> LiteralString:
        """The text of the block ``name``, with psycopg's named placeholders."""
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = self.bind(_blocks()[name], has_placeholders=True)
        return text

    def plain_sql(self, name: str) -> LiteralString:
        """The text of a block that has no placeholders, for where psycopg looks for none."""
        return self.bind(_blocks()[name])

    def statement(self, name: str) -> Statement:
        """The block ``name`` as a prepared statement."""
        statement = self._statements.get(name)
        if statement is None:
            statement = self._statements[name] = Statement(name, self.sql(name))
        return statement

    def bind(self, text: LiteralString, *, has_placeholders: bool = False) -> LiteralString:
        """Put the names of this schema into a text.

        :param has_placeholders: whether psycopg will look for placeholders in it, and take two percent signs for one
        """
        percent = "%%" if has_placeholders else "%"
        schema, channel = self.schema.replace("%", percent), self.channel.replace("%", percent)
        quoted = sql.Identifier(schema).as_string(None)
        bound = sql.SQL(text).format(
            schema=sql.Identifier(schema),
            schema_name=sql.Literal(schema),
            channel=sql.Literal(channel),
            job_id_seq=sql.Literal(f"{quoted}.job_id_seq"),
            queued_seq=sql.Literal(f"{quoted}.queued_seq"),
        )
        # Every part is a literal of ours, or quoted by psycopg.
        return bound.as_string(None)


@cache
def _blocks() -> dict[str, LiteralString]:
    """All named blocks of the ``.sql`` files."""
    blocks: dict[str, LiteralString] = {}
    for path in (files(__package__) / "sql").iterdir():
        if not path.name.endswith(".sql"):
            continue
        for block in ("\n" + path.read_text("utf-8")).split("\n-- name: ")[1:]:
            name, _, body = block.partition("\n")
            if name in blocks:
                raise RuntimeError(f"two SQL blocks are called {name}")
            blocks[name.strip()] = body
    return blocks
