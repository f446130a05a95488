"""Migrations of versions that do not exist: what a later one might do to the tables that today's code works with.

They take the locks of the busiest tables, in other orders than any statement of ours does.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, LiteralString

from pgq_anyio._store import migrations as package

LATER: Final[dict[str, LiteralString]] = {
    "901_notes": """
        alter table {schema}.finished add column note text;
        alter table {schema}.running add column note text;
        alter table {schema}.queued add column note text;
        alter table {schema}.worker add column note text not null default '';
    """,
    "902_indexes": """
        create index queued_later on {schema}.queued (created_at);
        create index finished_later on {schema}.finished (created_at);
    """,
    "903_changes": """
        alter table {schema}.worker add column extra bigint;
        alter table {schema}.queued alter column note set default 'x';
        alter table {schema}.limiter_state add column note text;
        alter table {schema}.running drop column note;
    """,
    "904_more": """
        drop index {schema}.queued_later;
        drop index {schema}.finished_later;
        alter table {schema}.deferred add column note text;
    """,
}

_present = package.migrations


def expect_later(number: int) -> None:
    """Let this process take the first ones for its own, as the code of a later version would."""
    names = {**_present(), **dict(islice(LATER.items(), number))}
    package.migrations = lambda: names  # type: ignore[assignment]
