"""The environments of the peers: each its own, made once, so that their dependencies and ours do not meet.

``python -m benchmarks peers`` makes them in ``.nox/peers``. A measurement without a peer goes on and reports that it is
missing: a machine may have no Node.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from ._children import MeasurementError

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".nox" / "peers"
PGQUEUER = PLACE / "pgqueuer"
GRAPHILE_WORKER = PLACE / "graphile-worker"
PYTHON_REQUIREMENTS = ("pgqueuer[asyncpg]==1.6.*", "uvloop")
NODE_REQUIREMENTS = ("graphile-worker@0.18",)
MISSING = "not installed: python -m benchmarks peers"


def install_pgqueuer() -> None:
    """Make its environment, unless it is there.

    :raises MeasurementError: if it cannot be made
    """
    python, stamp = pgqueuer_python(), PGQUEUER / "installed"
    if _is_installed(stamp, PYTHON_REQUIREMENTS):
        return
    _run(sys.executable, "-m", "venv", "--without-pip", "--clear", str(PGQUEUER))
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *PYTHON_REQUIREMENTS)
    stamp.write_text("\n".join(PYTHON_REQUIREMENTS))


def install_graphile_worker() -> None:
    """Make its folder, unless it is there.

    :raises MeasurementError: if it cannot be made: there is no Node, or no npm
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise MeasurementError(f"there is no {program} on this machine")
    stamp = GRAPHILE_WORKER / "installed"
    if _is_installed(stamp, NODE_REQUIREMENTS):
        return
    GRAPHILE_WORKER.mkdir(parents=True, exist_ok=True)
    (GRAPHILE_WORKER / "package.json").write_text('{"name": "peer", "private": true}\n')
    options = ("--no-audit", "--no-fund", "--loglevel=error")
    _run("npm", "install", *options, *NODE_REQUIREMENTS, cwd=GRAPHILE_WORKER)
    stamp.write_text("\n".join(NODE_REQUIREMENTS))


def install_peers() -> dict[str, str]:
    """Make all environments; the reasons for those that could not be made."""
    missing: dict[str, str] = {}
    for name, install in (("PgQueuer", install_pgqueuer), ("graphile-worker", install_graphile_worker)):
        try:
            install()
        except MeasurementError as error:
            missing[name] = str(error)
    return missing


def pgqueuer_python() -> Path:
    """Where PgQueuer's Python is, or would be."""
    return PGQUEUER / "bin" / "python"


def pgqueuer_version() -> str:
    """What is installed.

    :raises MeasurementError: if nothing is
    """
    if not (PGQUEUER / "installed").exists():
        raise MeasurementError(MISSING)
    wanted = ("pgqueuer", "asyncpg", "uvloop")
    places = [str(path) for path in PGQUEUER.glob("lib/python*/site-packages")]
    found = {one.metadata["Name"].lower(): one.version for one in distributions(path=places)}
    return ", ".join(f"{name} {found[name]}" for name in wanted)


def graphile_worker_version() -> str:
    """What is installed.

    :raises MeasurementError: if nothing is
    """
    if not (GRAPHILE_WORKER / "installed").exists() or shutil.which("node") is None:
        raise MeasurementError(MISSING if shutil.which("node") else "there is no node on this machine")
    package = GRAPHILE_WORKER / "node_modules" / "graphile-worker" / "package.json"
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"graphile-worker {json.loads(package.read_text('utf-8'))['version']}, node {node}"


def _is_installed(stamp: Path, requirements: tuple[str, ...]) -> bool:
    return stamp.exists() and stamp.read_text() == "\n".join(requirements)


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise MeasurementError(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")
