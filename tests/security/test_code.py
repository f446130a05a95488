"""Nothing that is read from the database is unpickled or evaluated, in the worker, its children, and for who reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.audited import AUDIT


def run(what: str, backend: str, audit: Path, **environment: str) -> None:
    """Run the program that is watched; an error of its own is one of the test."""
    # Not measured: threads, their trace functions and a hook do not go together (see there).
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.audited", what, backend],
        env={**inherited, AUDIT: str(audit), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr


def test_the_hook_works(tmp_path: Path) -> None:
    """Whoever unpickled or evaluated a value would be seen."""
    run("betray", "asyncio", tmp_path / "audit")
    seen = (tmp_path / "audit").read_text()
    for event in ("pickle.find_class", "os.system", "compile"):
        assert event in seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_values_stay_values(dsn: str, schema: str, tmp_path: Path, backend: str) -> None:
    """Payloads, names, reasons and errors that are programs come through handlers of each kind as they are."""
    audit = tmp_path / "audit"
    run("keep_values", backend, audit, PGQ_TEST_WORKER_DSN=dsn, PGQ_TEST_SCHEMA=schema)
    assert not audit.exists(), audit.read_text()
