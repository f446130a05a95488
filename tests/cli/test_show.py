"""What the terminal shows while something takes long."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pgq_anyio._cli.show import make_console, printable, progress


def test_lines_go_above_the_bar() -> None:
    """What is told meanwhile replaces the bar, which is drawn again below it."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with progress("running", 10, console) as done:
        done(4)
        console.print("told")
    assert "\x1b[2Ktold\n" in shown.getvalue()


def test_nothing_is_shown_where_nobody_looks() -> None:
    """A file gets no bar."""
    shown = io.StringIO()
    with progress("running", 10, Console(file=shown)) as done:
        done(10)
    assert "" == shown.getvalue().strip()


def test_texts_of_others_are_no_instructions(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither for the terminal nor for what draws the tables."""
    text = "a\x1b]52;c;eA==\x07\x9b2J\u202eb [red]:key:\n\tc é 日本"
    make_console(markup=False).print(printable(text, keep="\n\t"))
    assert "a\\x1b]52;c;eA==\\x07\\x9b2J\\u202eb [red]:key:\n\tc é 日本\n" == capsys.readouterr().out.expandtabs(
        8
    ).replace("        c", "\tc")
    assert "a\\nb" == printable("a\nb")
