"""A schema full of traps: whatever our SQL names without saying whose it is, somebody else has made there, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import psycopg
from psycopg import sql

OPERATORS = ["=", "<>", "<", "<=", ">", ">=", "||", "+", "-", "*", "/", "~"]
#: Types of our columns, parameters and expressions: operators for each pair of them fit better than PostgreSQL's own
#: ones that take "any", or that cast one side.
TYPES = ["int2", "int4", "int8", "numeric", "float8", "text", "name", "bool", "timestamptz", "interval", "date", "oid"]
TYPES += ["text[]", "int8[]", "tid"]

_TRAPS = """
create function {evil}.trap() returns bool language plpgsql
as 'begin raise exception $$a hostile object was called$$; end';

do $traps$
declare
    one record;
    evil text := {evil_name};
begin
    execute format(
        'create function %I.make_interval(secs float8) returns interval language plpgsql as ' || {call}, evil, evil
    );
    -- Functions of every name that our SQL has, with every signature of PostgreSQL's own and more exact ones.
    for one in
        select distinct on (p.proname, arguments) p.proname, arguments, result
        from pg_proc p cross join lateral (
            values (pg_get_function_identity_arguments(p.oid), format_type(p.prorettype, null))
        ) as s (arguments, result)
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any ({functions})
            and p.prorettype not in ('internal'::regtype, 'trigger'::regtype) and not p.proretset
            and not p.proargtypes::oid[] && array['internal'::regtype, '"any"'::regtype, 'cstring'::regtype]::oid[]
            and arguments !~ 'VARIADIC|ORDER BY'
    loop
        begin
            execute format(
                'create function %I.%I(%s) returns %s language plpgsql as ' || {call},
                evil, one.proname, one.arguments, one.result, evil
            );
        exception when others then
            raise notice '%: %', one, sqlerrm;
        end;
    end loop;
    for one in
        select * from unnest({functions}::text[]) as f (proname) cross join unnest({types}::text[]) as t (type)
    loop
        begin
            execute format(
                'create function %I.%I(%s) returns int8 language plpgsql as ' || {call},
                evil, one.proname, one.type, evil
            );
        exception when duplicate_function then null;
        end;
    end loop;
    -- Operators for each pair of types.
    for one in select l, r from unnest({types}::text[]) as l cross join unnest({types}::text[]) as r loop
        execute format(
            'create function %I.operate(%s, %s) returns bool language plpgsql as ''begin return %I.trap(); end''',
            evil, one.l, one.r, evil
        );
    end loop;
    for one in
        select * from unnest({operators}::text[]) as name cross join unnest({types}::text[]) as l
        cross join unnest({types}::text[]) as r
    loop
        execute format(
            'create operator %I.%s (leftarg = %s, rightarg = %s, function = %I.operate)',
            evil, one.name, one.l, one.r, evil
        );
    end loop;
    -- Types whose values spring the trap, and relations.
    for one in select * from unnest(array['text', 'bytea', 'timestamptz', 'date', 'tid', 'name', 'oid']) as name loop
        execute format('create domain %I.%I as pg_catalog.%I check (%I.trap())', evil, one.name, one.name, evil);
    end loop;
    for one in select * from unnest({relations}::text[]) as name loop
        execute format('create view %I.%I as select %I.trap()', evil, one.name, evil);
    end loop;
end
$traps$;
"""


def our_sql() -> str:
    """All SQL of the package."""
    root = Path(str(files("pgq_anyio")))
    return "\n".join(path.read_text("utf-8") for path in [*root.rglob("*.sql"), root / "_db" / "pooled.py"])


@contextmanager
def hostile_schema(dsn: str, name: str) -> Iterator[str]:
    """Make the traps; the name of their schema."""
    text = our_sql()
    functions = sorted(set(re.findall(r"\b([a-z_]+)\(", text)) - {"trap", "operate"})
    relations = sorted(set(re.findall(r"pg_catalog\.(pg_\w+) [a-z]\b|\{schema\}\.(\w+)", text)))
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        try:
            admin.execute(
                sql.SQL(_TRAPS).format(
                    evil=sql.Identifier(name),
                    evil_name=name,
                    call="'begin perform %I.trap(); end'",
                    functions=functions,
                    types=TYPES,
                    operators=OPERATORS,
                    relations=sorted(
                        {a or b for a, b in relations} - {"enqueue", "make_finished_day", "drop_finished_day"}
                    ),
                )
            )
            yield name
        finally:
            admin.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))
