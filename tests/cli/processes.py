"""The command line in processes of its own, and what they say."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

import attrs

ROOT = Path(__file__).parents[2]


@attrs.define(eq=False)
class Command:
    """A running command."""

    popen: subprocess.Popen[str]
    _lines: list[str] = attrs.field(factory=list)
    _changed: threading.Condition = attrs.field(factory=threading.Condition)
    _ended: bool = False
    _reader: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        """What it has said so far."""
        with self._changed:
            return "\n".join(self._lines)

    def wait_said(self, text: str, timeout: float = 45.0) -> None:
        """Wait for a line with this text."""

        def found() -> bool:
            return self._ended or any(text in line for line in self._lines)

        with self._changed:
            self._changed.wait_for(found, timeout)
        assert text in self.output, f"it did not say {text!r} but:\n{self.output}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 45.0) -> int:
        """Wait for its end; the exit code."""
        code = self.popen.wait(timeout)
        self._reader.join(5)
        return code

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(20)
        self._reader.join(5)
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def _read_all(terminal: int) -> None:
    """Read what is shown, so that nobody waits for it; until the other side is closed, which is an error on Linux."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


@attrs.define(eq=False)
class Commands:
    """Starts commands in the test's directory."""

    dsn: str
    directory: Path
    _started: list[Command] = attrs.field(factory=list, init=False)

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Command:
        """Start ``pgq-anyio`` with these arguments; standard output and standard error are one."""
        popen = subprocess.Popen(
            [sys.executable, "-m", "pgq_anyio", *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        command = Command(popen)
        self._started.append(command)
        return command

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        """Run a command to its end; the exit code, and what it said."""
        command = self.start(*arguments, environment=environment)
        return command.wait(60), command.output

    def run_beside_a_terminal(self, *arguments: str) -> tuple[int, str]:
        """Run a command whose standard error is a terminal, and its standard output a pipe; what that has got."""
        ours, its = pty.openpty()
        reader = threading.Thread(target=_read_all, args=(ours,), daemon=True)
        try:
            reader.start()
            done = subprocess.run(
                [sys.executable, "-m", "pgq_anyio", *arguments],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=its,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            os.close(its)
            reader.join(5)
            os.close(ours)
        return done.returncode, done.stdout

    def start_worker(self, schema: str, *options: str, target: str = "tests.cli.apps:app") -> Command:
        """Start a worker on the test's database; returns when it is ready."""
        worker = self.start(
            "run", target, f"--dsn={self.dsn}", f"--schema={schema}", *options, environment=self.environment(schema)
        )
        worker.wait_said("ready: registered and listening")
        return worker

    def environment(self, schema: str) -> dict[str, str]:
        """Where the handlers of ``tests.worker.apps`` write what they do."""
        return {"PGQ_TEST_DSN": self.dsn, "PGQ_TEST_SCHEMA": schema}

    def __enter__(self) -> Commands:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        for command in self._started:
            command.end()
