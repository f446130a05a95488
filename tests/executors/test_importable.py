"""Names of handlers: which functions have one, and that it leads to them in another process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio._errors import ConfigurationError
from pgq_anyio._executors._process import check_importable
from tests.executors import process_handlers

ROOT = Path(__file__).parents[2]


def top_level() -> None:
    """A handler."""


async def top_level_async() -> None:
    """An async handler."""


taken = top_level
first_of_its_name = top_level


def top_level_twice() -> None:
    """A handler whose name is taken away below."""


lost = top_level_twice


def top_level_twice() -> None:  # type: ignore[no-redef]
    """Take the name."""


class Holder:
    """A class with handlers in it."""

    @staticmethod
    def static() -> None:
        """A handler."""

    @classmethod
    def of_class(cls) -> None:
        """A handler."""

    def method(self) -> None:
        """Not a handler."""

    def __call__(self) -> None:
        """Not a handler."""


def bare_decorator(function: Callable[[], None]) -> Callable[[], None]:
    def wrapper() -> None:
        function()

    return wrapper


def polite_decorator(function: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(function)
    def wrapper() -> None:
        function()

    return wrapper


@polite_decorator
def polite() -> None:
    """A handler."""


@bare_decorator
def bare() -> None:
    """Not a handler."""


@pytest.mark.parametrize(
    ("function", "qualname"),
    [
        (top_level, "top_level"),
        (top_level_async, "top_level_async"),
        (Holder.static, "Holder.static"),
        (Holder.of_class, "Holder.of_class"),
        (polite, "polite"),
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_importable(function: Callable[..., Any], qualname: str, bound: bool) -> None:
    """Functions at the top level of a module, and those of classes there, are named by module and qualified name."""
    assert f"{__name__}:{qualname}" == check_importable(function, bound=bound)


@pytest.mark.promise(22)
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: None, "<lambda> is a lambda"),
        (bare, "bare_decorator.<locals>.wrapper is defined inside a function.*functools.wraps"),
        (Holder().method, "Holder.method is a method of an instance"),
        (Holder(), "has no name"),
        (functools.partial(top_level), "has no name"),
    ],
)
def test_not_importable(function: Callable[..., Any], reason: str) -> None:
    """Everything else is refused, with the function and the fix in the message."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        check_importable(function)
    assert "define it with `def` at the top level of a module" in str(caught.value)


def test_name_that_leads_elsewhere() -> None:
    """Registration cannot know who will have the name; the later check does."""
    assert f"{__name__}:top_level_twice" == check_importable(lost)
    with pytest.raises(ConfigurationError, match="top_level_twice does not lead to the handler"):
        check_importable(lost, bound=True)


PROGRAM = """
import sys
import anyio
from pgq_anyio._executors._process import ProcessPool, check_importable

class MainError(Exception):
    pass

class Value:
    def __init__(self, number):
        self.number = number

def handler(value):
    assert type(value) is Value
    if value.number:
        raise MainError(value.number)
    return Value(41), sys.argv

async def main():
    target = check_importable(handler, bound=True)
    async with ProcessPool(1) as pool:
        value, argv = await pool.run(target, (Value(0),))
        assert type(value) is Value and value.number == 41, value
        assert argv == sys.argv, argv
        try:
            await pool.run(target, (Value(5),))
        except MainError as error:
            assert error.args == (5,)
            print("fine")
"""
GUARDED = PROGRAM + "\nif __name__ == '__main__':\n    anyio.run(main)\n"
UNGUARDED = PROGRAM + "\nanyio.run(main)\n"


def run(*arguments: str, directory: Path, source: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        input=source,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("app.py", ["app.py", "one"]),
        ("app", ["app", "one"]),
        ("folder/__main__.py", ["folder", "one"]),
        ("app.py", ["-m", "app", "one"]),
        ("package/app.py", ["-m", "package.app", "one"]),
        ("package/__main__.py", ["-m", "package"]),
    ],
)
def test_handlers_of_the_program_itself(tmp_path: Path, place: str, arguments: list[str]) -> None:
    """Handlers, arguments, results and exceptions may be defined in the program, however it is run."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(GUARDED)
    result = run(*arguments, directory=tmp_path)
    assert ("fine\n", "", 0) == (result.stdout, result.stderr, result.returncode)


@pytest.mark.parametrize("arguments", [["app.py"], ["-m", "app"]])
def test_program_without_a_guard(tmp_path: Path, arguments: list[str]) -> None:
    """A program that would start a second worker in the child is told about the missing guard."""
    (tmp_path / "app.py").write_text(UNGUARDED)
    result = run(*arguments, directory=tmp_path)
    assert 0 != result.returncode
    assert 'under `if __name__ == "__main__":`' in result.stderr


@pytest.mark.parametrize("arguments", [["-c", PROGRAM + "\nanyio.run(main)"], ["-"]])
def test_program_without_a_file(tmp_path: Path, arguments: list[str]) -> None:
    """Functions typed in have no place to be imported from."""
    result = run(*arguments, directory=tmp_path, source=UNGUARDED)
    assert 0 != result.returncode
    assert "the handler handler is defined in an interactive session" in result.stderr


def test_handlers_of_the_tests_are_importable() -> None:
    """The other tests' handlers are what they claim to be."""
    expected = "tests.executors.process_handlers:echo"
    assert expected == check_importable(process_handlers.echo, bound=True)
