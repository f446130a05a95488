"""Helpers of these tests: processes that hold a server, and what of it can be seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg

REPOSITORY = Path(__file__).parent.parent.parent

#: Hold the server named on standard input until that ends.
SCRIPT = """
import json, sys
from pathlib import Path
from pgq_anyio._embedded import EmbeddedServer
given = json.loads(sys.stdin.readline())
directory = given["directory"] and Path(given["directory"])
with EmbeddedServer(directory, ephemeral=given["ephemeral"]) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that holds the embedded server of a directory.

    :param arguments: further arguments for ``subprocess.Popen``
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        ephemeral: bool = False,
        python: str = sys.executable,
        **arguments: Any,
    ) -> None:
        self.process = subprocess.Popen(
            [python, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **{"cwd": REPOSITORY, **arguments},
        )
        assert self.process.stdin is not None
        request = {"directory": None if directory is None else str(directory), "ephemeral": ephemeral}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def dsn(self) -> str:
        """Wait until the process has the server."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line.strip()

    def leave(self) -> None:
        """Let it end in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(40)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def processes_of(room: Path) -> list[int]:
    """The processes of the server in a directory and of its guardian."""
    return matching(lambda process: belongs_to(process, room))


def guardian_of(room: Path) -> int:
    """The process id of the guardian."""
    (found,) = matching(lambda process: is_guardian(process, room))
    return found


def postmaster_of(room: Path) -> int:
    """The process id of the server."""
    return int((room / "data" / "postmaster.pid").read_text().split()[0])


def belongs_to(process: psutil.Process, room: Path) -> bool:
    return process.cwd() == str(room / "data") or is_guardian(process, room)


def matching(condition: Callable[[psutil.Process], bool]) -> list[int]:
    """The processes that a condition is true for. Others may end while we look."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and condition(process):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def is_guardian(process: psutil.Process, room: Path) -> bool:
    command = process.cmdline()
    return len(command) > 3 and "_guardian import main" in command[2] and json.dumps(str(room)) in command[-1]


def query(dsn: str, statement: str) -> str:
    """Ask the server one thing."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return "" if row is None else str(row[0])


def started_at(dsn: str) -> str:
    """Which life of the server this is."""
    return query(dsn, "select pg_postmaster_start_time()")


def wait_until(fact: Callable[[], bool], *, timeout: float = 30) -> None:
    """Wait for something that another process does.

    :raises TimeoutError: if it has not become true in time
    """
    deadline = time.monotonic() + timeout
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {timeout:g} s")
        time.sleep(0.02)


def modes(path: Path) -> Mapping[str, tuple[int, int, int]]:
    """Mode and owners of all parents of a path."""
    return {str(parent): (s.st_mode, s.st_uid, s.st_gid) for parent in path.parents for s in [parent.stat()]}
