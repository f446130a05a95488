"""Every example of the documentation, as it stands: what it prints is what its page says that it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pgq_anyio

pytestmark = pytest.mark.heavy

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "testing")

#: What a reader's ``anyio.run(main)`` does, on either backend. The example is a module, as handlers in processes need.
PROGRAM = "import sys, anyio, importlib; anyio.run(importlib.import_module(sys.argv[1]).main, backend=sys.argv[2])"


def run(database: str, *arguments: str) -> str:
    """Run Python in the directory of the examples; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLES,
        # What processes print is to come in the order in which they print it, as on a terminal.
        env={**os.environ, "PGQ_ANYIO_DSN": database, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_prints_what_its_page_says(name: str, backend: str, database: str) -> None:
    assert (EXAMPLES / f"{name}.out").read_text("utf-8") == run(database, "-c", PROGRAM, name, backend)


def test_an_example_runs_as_a_program(database: str) -> None:
    """``python enqueueing.py``, as the pages tell their readers."""
    assert (EXAMPLES / "enqueueing.out").read_text("utf-8") == run(database, "enqueueing.py")


def test_the_tests_of_an_application_pass(database: str) -> None:
    """The page about tests shows a test module; pytest runs it."""
    assert "6 passed" in run(database, "-m", "pytest", "-p", "no:cacheprovider", "testing.py")


@pytest.mark.parametrize("name", pgq_anyio.__all__)
def test_every_public_name_has_its_place_in_the_reference(name: str) -> None:
    """What users may import they can look up."""
    reference = "".join(page.read_text("utf-8") for page in (EXAMPLES.parent / "reference").glob("*.md"))
    assert f"::: pgq_anyio.{name}\n" in reference


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_is_shown(path: Path) -> None:
    """An example that no page includes is one that nobody reads."""
    if path.is_file():
        pages = "".join(page.read_text("utf-8") for page in EXAMPLES.parent.glob("*.md"))
        assert f"\n--8<--\n{path.name}\n--8<--\n" in pages
