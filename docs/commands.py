"""Writes the page of the command line from the commands themselves while the documentation is built (a MkDocs hook)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from pgq_anyio._cli.program import app

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the commands in the place of the mark (called by MkDocs for every page)."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(_describe("pgq-anyio", typer.main.get_command(app))))


def _describe(name: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for inner in command.commands.values():
            yield from _describe(f"{name} {inner.name}", inner)
        return
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join([name, *(argument.metavar or argument.name.upper() for argument in arguments)])
    yield f"\n## `{usage}`\n\n{command.help}\n\n| | | default |\n|---|---|---|"
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        if parameter in arguments:
            names = [parameter.metavar or parameter.name.upper()]
        default = parameter.default
        shown = "" if default in (None, False) or callable(default) or parameter in arguments else f"`{default}`"
        yield f"| {' '.join(f'`{one}`' for one in names)} | {parameter.help or ''} | {shown} |"
