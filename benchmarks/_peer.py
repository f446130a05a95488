"""The environment of PgQueuer: its own, made once, so that its dependencies and ours do not meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from ._children import MeasurementError, measure

REQUIREMENTS = ("pgqueuer[asyncpg]==1.6.*", "uvloop")
SCRIPT = Path(__file__).with_name("_pgqueuer_worker.py")


def peer_python() -> str:
    """The Python that has PgQueuer: ``PGQ_ANYIO_BENCH_PEER``, or one in ``.bench`` that is made now.

    :raises MeasurementError: if it cannot be made
    """
    given = os.environ.get("PGQ_ANYIO_BENCH_PEER")
    if given:
        return given
    place = Path(".bench").resolve() / "pgqueuer"
    python = place / "bin" / "python"
    stamp = place / "installed"
    if not stamp.exists():
        _run(sys.executable, "-m", "venv", "--without-pip", str(place))
        _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *REQUIREMENTS)
        stamp.touch()
    return str(python)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise MeasurementError(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")


def measure_peer(python: str, dsn: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One drain by PgQueuer."""
    where = conninfo_to_dict(dsn)
    parts = [str(where.get(key) or "") for key in ("host", "user", "dbname")]
    return measure([python, str(SCRIPT), *parts, *arguments])
