"""Child processes: every step of a measurement runs in one of its own and prints lines of JSON, its figures last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LOOPS = ("asyncio", "uvloop", "trio")
#: How long a child that was asked to leave may take (in seconds).
LEAVING = 60.0


class MeasurementError(Exception):
    """A measurement gave no figures."""


def measure(command: Sequence[str], *, timeout: float = 900.0, cwd: Path | None = None) -> dict[str, Any]:
    """Run a command and return its figures.

    :raises MeasurementError: if it fails; with the end of what it said
    """
    # Without a buffer Python loses what a pipe does not take at once: seen behind 64 KiB.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=environment
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise MeasurementError(str(error)[:2000]) from error
    if done.returncode != 0 or not done.stdout.strip():
        raise MeasurementError(done.stderr.strip()[-2000:] or f"exit status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def measure_module(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this package in a child process."""
    return measure([sys.executable, "-m", f"benchmarks.{module}", *arguments])


def loop_options(loop: str) -> dict[str, Any]:
    """What ``anyio.run`` is told to run on this event loop."""
    if loop == "trio":
        return {"backend": "trio"}
    return {"backend": "asyncio", "backend_options": {"use_uvloop": loop == "uvloop"}}


class Child:
    """A worker that says lines of JSON while it runs, until it is asked to leave by SIGTERM.

    A context manager: whatever happens, it has ended afterwards.
    """

    def __init__(self, command: Sequence[str], cwd: Path | None = None) -> None:
        self._command, self._cwd = command, cwd
        self._ready = threading.Event()
        #: how many handlers it has run, as it said last
        self.handled = 0
        self._last: dict[str, Any] = {}
        self._asked = False

    def __enter__(self) -> Self:
        """Start it. It is not ready yet."""
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=self._cwd
        )
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._listening.join()
        self._errors.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                self.handled = said.get("handled", self.handled)
                self._last = said
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        """Wait until it is ready.

        :raises MeasurementError: if it ends instead
        """
        self._ready.wait(LEAVING)
        self.check()

    def check(self) -> None:
        """Look whether it still runs.

        :raises MeasurementError: if it has ended, or is not ready after a minute
        """
        if not self._ready.is_set() or self._process.poll() is not None:
            raise MeasurementError(self._last_words())

    def ask_to_leave(self) -> None:
        """Once, and without waiting for its end: a second signal would be another request."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def leave(self) -> dict[str, Any]:
        """Ask it to leave, and wait for its figures."""
        self.ask_to_leave()
        try:
            self._process.wait(LEAVING)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"the worker did not leave within {LEAVING:g} s") from error
        self._listening.join()
        if self._process.returncode != 0:
            raise MeasurementError(self._last_words())
        return self._last

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip()[-2000:] or f"exit status {self._process.poll()}"
