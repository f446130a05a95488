"""What this machine has: CPythons, and PostgreSQL installations.

Standard library only, and no syntax newer than Python 3.7: ``noxfile.py`` uses it before anything is installed, under
whatever ``python3`` is, to find a Python that is new enough.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys

#: The CPythons that the package is tested on.
VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))

#: Directories of Pythons that are often not on the PATH: those of version managers, and the usual prefixes.
PYTHON_DIRECTORIES = (
    "~/.pyenv/versions/*/bin",
    "~/.asdf/installs/python/*/bin",
    "~/.local/share/mise/installs/python/*/bin",
    "~/.local/share/uv/python/*/bin",
    "~/.local/bin",
    "/usr/local/bin",
    "/opt/python/*/bin",
    "/opt/homebrew/bin",
    "/Library/Frameworks/Python.framework/Versions/*/bin",
)

#: Directories of PostgreSQL's programs: Debian, Red Hat, Homebrew, Postgres.app.
POSTGRES_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

#: Printed by a CPython with a GIL, outside of virtual environments: what a session can be built on.
_ASK = (
    "import sys; print('%s %d.%d' % (sys.implementation.name, *sys.version_info[:2])"
    " if sys.prefix == sys.base_prefix and getattr(sys, '_is_gil_enabled', lambda: True)() else '')"
)


def find_pythons() -> dict[str, str]:
    """Find one CPython of each version that the package is tested on.

    The distribution's comes first: it is optimised by a profile, which version managers leave out when they compile
    one, and takes two thirds of the time. Each one is started once: version managers put programs on the PATH that only
    say that there is no such Python.

    :return: program by version, such as ``{"3.11": "/usr/bin/python3.11"}``, oldest first
    """
    directories = ["/usr/bin", os.path.dirname(getattr(sys, "_base_executable", sys.executable))]
    directories += [part for part in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(part)]
    if os.environ.get("PYENV_ROOT"):
        directories += _newest_first(os.path.join(os.environ["PYENV_ROOT"], "versions", "*", "bin"))
    for pattern in PYTHON_DIRECTORIES:
        directories += _newest_first(os.path.expanduser(pattern))
    found: dict[str, str] = {}
    for major, minor in VERSIONS:
        version = "%d.%d" % (major, minor)
        for directory in directories:
            program = os.path.join(directory, "python" + version)
            if os.access(program, os.X_OK) and _run(program, "-c", _ASK) == "cpython " + version:
                found[version] = program
                break
    return found


def find_postgres() -> dict[int, str]:
    """Find installed PostgreSQL servers.

    :return: directory of the programs by major version, oldest first
    """
    found: dict[int, str] = {}
    for pattern in POSTGRES_DIRECTORIES:
        for directory in _newest_first(pattern):
            said = re.match(r"postgres \(PostgreSQL\) (\d+)", _run(os.path.join(directory, "postgres"), "--version"))
            if said and os.access(os.path.join(directory, "initdb"), os.X_OK):
                found.setdefault(int(said.group(1)), directory)
    return dict(sorted(found.items()))


def _newest_first(pattern: str) -> list[str]:
    """Directories that match, 3.13.10 before 3.13.9."""
    return sorted(glob.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", path)], reverse=True)


def _run(program: str, *arguments: str) -> str:
    """What a program prints; nothing if it cannot be run or fails."""
    try:
        done = subprocess.run(
            [program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
