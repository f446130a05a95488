"""From a name on the command line to an app, and what is said when there is none."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from pgq_anyio import AppLoadError, PgQueuer
from pgq_anyio._cli.loading import load_target, open_app

_numbers = itertools.count(1)

Write = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current directory; its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(source: str) -> str:
        name = f"loaded_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text("from pgq_anyio import PgQueuer\n" + dedent(source))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


async def schema_of(target: str) -> str:
    """Load an app as the command line does; its schema, which tells it from others."""
    async with open_app(load_target(target)) as app:
        assert isinstance(app, PgQueuer)
        return app.schema


KINDS = {
    "app": "app = PgQueuer(schema='found')",
    "function": "def app(): return PgQueuer(schema='found')",
    "function with defaults": "def app(schema='found', *rest, **options): return PgQueuer(schema=schema)",
    "async function": "async def app(): return PgQueuer(schema='found')",
    "async context manager": """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def app():
            yield PgQueuer(schema='found')
        """,
    "async function that gives an async context manager": """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def manager():
            yield PgQueuer(schema='found')
        async def app():
            return manager()
        """,
    "class that is an async context manager": """
        class app:
            async def __aenter__(self): return PgQueuer(schema='found')
            async def __aexit__(self, *error): pass
        """,
    "partial": "import functools\napp = functools.partial(PgQueuer, schema='found')",
    "attribute of a class": "class holder:\n    app = PgQueuer(schema='found')\napp = PgQueuer(schema='other')",
}


@pytest.mark.anyio
@pytest.mark.promise(39)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", [":", "."])
async def test_every_kind_of_target(write_module: Write, kind: str, separator: str) -> None:
    """A target may be an app or whatever gives one, named with a colon or as a dotted path."""
    module = write_module(KINDS[kind])
    attribute = "holder.app" if "holder" in KINDS[kind] else "app"
    assert await schema_of(f"{module}{separator}{attribute}") == "found"


@pytest.mark.anyio
async def test_manager_is_held_open(write_module: Write) -> None:
    """An async context manager is left when the app is let go, with the error that ended it."""
    module = write_module("""
        from contextlib import asynccontextmanager
        log = []
        @asynccontextmanager
        async def app():
            log.append("enter")
            try:
                yield PgQueuer()
            except ValueError as error:
                log.append(f"error {error}")
                raise
            finally:
                log.append("leave")
        """)
    target = load_target(f"{module}:app")

    async def fail_inside() -> None:
        async with open_app(target):
            sys.modules[module].log.append("open")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        await fail_inside()
    assert ["enter", "open", "error inside", "leave"] == sys.modules[module].log


async def message_of(target: str) -> str:
    """What is said about a target that leads to no app."""
    with pytest.raises(AppLoadError) as caught:
        await schema_of(target)
    return str(caught.value)


@pytest.mark.anyio
@pytest.mark.promise(39)
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("app = 3", "'{m}:app' is int, not a PgQueuer: it must be a PgQueuer, or a function, async function or"),
        ("app = None", "'{m}:app' is None, not a PgQueuer: it must be"),
        ("app = PgQueuer", "'{m}:app' is the class PgQueuer, not an app: write app = PgQueuer() and name that"),
        ("def app(): pass", "'{m}:app' gives None, not a PgQueuer: it needs a return (or yield) with the app"),
        ("async def app(): return 3", "'{m}:app' gives int, not a PgQueuer: it must be"),
        ("def app(dsn): pass", "'{m}:app' takes arguments, (dsn), and nobody passes any: give them defaults"),
        (
            "async def app():\n    yield PgQueuer()",
            "'{m}:app' is an async generator, which nobody would close: put @contextlib.asynccontextmanager above it",
        ),
        (
            "async def make():\n    yield PgQueuer()\ndef app(): return make()",
            "'{m}:app' is an async generator, which nobody would close: put @contextlib.asynccontextmanager above it",
        ),
        (
            "def app():\n    yield PgQueuer()",
            "'{m}:app' gives generator, not a PgQueuer: make it an async function with @contextlib.asynccontextmanager",
        ),
        (
            "from contextlib import contextmanager\n@contextmanager\ndef app():\n    yield PgQueuer()",
            "not a PgQueuer: make it an async function with @contextlib.asynccontextmanager",
        ),
        (
            "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def app():\n    yield",
            "'{m}:app' gives None, not a PgQueuer: it needs a return (or yield) with the app",
        ),
        ("def app(): raise KeyError('x')", "'{m}:app' failed: KeyError: 'x' ({m}.py, line 2)"),
        (
            "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def app():\n    1 / 0\n    yield",
            "'{m}:app' failed: ZeroDivisionError: division by zero ({m}.py, line 5)",
        ),
        ("1 / 0", "importing '{m}' failed: ZeroDivisionError: division by zero ({m}.py, line 2)"),
        ("raise SystemExit(3)", "importing '{m}' failed: SystemExit: 3 ({m}.py, line 2)"),
        (
            "import not_there",
            "importing '{m}' failed: ModuleNotFoundError: No module named 'not_there' ({m}.py, line 2)",
        ),
        ("ap = PgQueuer()", "the module '{m}' has no 'app': did you mean {m}:ap?"),
        ("def create_worker(): pass\nserver = PgQueuer()", "the module '{m}' has no 'app': did you mean {m}:server?"),
        ("pass", "the module '{m}' has no 'app': a PgQueuer, or a function, async function or async context manager"),
    ],
)
async def test_wrong_target(write_module: Write, source: str, said: str) -> None:
    """Whatever is wrong with a target, the message names it and what to write."""
    module = write_module(source)
    assert said.format(m=module) in await message_of(f"{module}:app")


@pytest.mark.anyio
@pytest.mark.promise(39)
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "is not the name of an app: write module:attr, such as myproject.jobs:app"),
        ("jobs:", "'jobs:' is not the name of an app: write module:attr"),
        (":app", "is not the name of an app"),
        ("jobs:app:more", "is not the name of an app"),
        ("my-jobs:app", "is not the name of an app"),
        ("jobs.py", "'jobs.py' is a file name: write the module as Python imports it, jobs:app"),
        ("./src/jobs.py:queue", "is a file name: write the module as Python imports it, src.jobs:queue"),
        ("not_there:app", "there is no module 'not_there': start in the directory that contains it"),
        ("not_there.jobs", "there is no module 'not_there'"),
        ("logging.handlrs:app", "there is no module 'logging.handlrs': did you mean logging.handlers?"),
        ("logging.handlers.x", "the module 'logging.handlers' has no 'x'"),
        ("logging.handlers", "'logging.handlers' is a module, not an app: write logging.handlers:attr"),
        ("not_there.jobs:app", "there is no module 'not_there' (asked for by 'not_there.jobs:app')"),
    ],
)
async def test_wrong_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str) -> None:
    """A name that leads nowhere is told, with names like it if there are any."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert said in await message_of(target)


@pytest.mark.anyio
async def test_near_names(write_module: Write) -> None:
    """A typing error in the module, or in a dotted path, is answered with the name that was meant."""
    module = write_module("holder = type('holder', (), {'queue': PgQueuer()})\nqueue = PgQueuer()")
    assert f"did you mean {module}?" in await message_of(f"{module[:-1]}_{module[-1]}:app")
    assert f"did you mean {module}.queue?" in await message_of(f"{module}.queu")
    assert f"did you mean {module}:holder.queue?" in await message_of(f"{module}:holder.queu")
    assert f"'{module}' is a module, not an app: did you mean {module}:queue?" in await message_of(module)


@pytest.mark.anyio
async def test_a_failure_of_user_code_keeps_its_cause(write_module: Write) -> None:
    """An error in the user's code is the cause, one in the name has none: that decides the exit code."""
    module = write_module("def app(): raise KeyError('x')")
    with pytest.raises(AppLoadError) as failed:
        await schema_of(f"{module}:app")
    assert isinstance(failed.value.__cause__, KeyError)
    with pytest.raises(AppLoadError) as misspelt:
        await schema_of(f"{module}:ap")
    assert misspelt.value.__cause__ is None


@pytest.mark.anyio
@pytest.mark.parametrize("separator", [":", "."])
async def test_an_attribute_that_cannot_be_looked_up(write_module: Write, separator: str) -> None:
    """A module that imports on demand, and lacks something."""
    module = write_module("def __getattr__(name):\n    if name == 'app':\n        import no_such_module")
    with pytest.raises(AppLoadError, match="failed: ModuleNotFoundError: No module named 'no_such_module'") as failed:
        await schema_of(f"{module}{separator}app")
    assert isinstance(failed.value.__cause__, ModuleNotFoundError)
