"""Handlers that the tests run in child processes. They block in ``signal.pause`` and report by files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import anyio.lowlevel
import sniffio

from pgq_anyio import Job, Schedule

PYTHON_CHILD = """
import os, signal, sys
from pathlib import Path
{setup}
Path(sys.argv[1] + ".part").write_text(str(os.getpid()))
os.replace(sys.argv[1] + ".part", sys.argv[1])
while True:
    signal.pause()
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
TIDY = """
def tidy(*_):
    Path(sys.argv[1] + ".tidied").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, tidy)
"""


def tell(path: str) -> None:
    """Write the process id into a file, which appears with all its contents."""
    part = Path(path + ".part")
    part.write_text(str(os.getpid()))
    part.replace(path)


def spawn(path: str, setup: str) -> None:
    """Start a program that writes its process id into a file and stays, and wait until it has."""
    subprocess.Popen([sys.executable, "-c", PYTHON_CHILD.format(setup=setup), path])
    wait_for_file(path)


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def stay() -> NoReturn:
    while True:
        signal.pause()


def echo(value: object) -> object:
    return value


def pid() -> int:
    return os.getpid()


async def backend_name(value: object) -> tuple[str, object]:
    await anyio.lowlevel.checkpoint()
    return sniffio.current_async_library(), value


def meet(directory: str, name: str, count: int) -> None:
    """Return when ``count`` handlers are here at once."""
    tell(f"{directory}/{name}")
    while len(list(Path(directory).glob("*[0-9]"))) < count:
        time.sleep(0.005)


class OddError(Exception):
    """Pickles, and cannot be built again."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"odd {code}")


class DumbError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class PlainError(Exception):
    pass


def fail(kind: str) -> None:
    class LocalError(Exception):
        pass

    errors: dict[str, BaseException] = {
        "plain": PlainError("plain", 1),
        "local": LocalError("local"),
        "odd": OddError(code=5),
        "dumb": DumbError(),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancelled": asyncio.CancelledError("not ours"),
        "group": ExceptionGroup("two", [PlainError("a"), ValueError("b")]),
    }
    raise errors[kind]


class Unreadable:
    """Pickles, and raises when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ()


def _raise() -> NoReturn:
    raise ValueError("cannot be read")


def unreadable_result() -> Unreadable:
    return Unreadable()


def unpicklable_result() -> object:
    return lambda: None


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


def die_and_leave(path: str) -> None:
    spawn(path, STUBBORN)
    os._exit(7)


def leave_behind(path: str) -> None:
    spawn(path, "")


def talk() -> str:
    print("from print")
    os.write(1, b"from write\n")
    print("from stderr", file=sys.stderr)
    subprocess.run(["echo", "from a program"], check=True)
    return sys.stdin.read()


def wait_here(path: str) -> None:
    tell(path)
    stay()


async def wait_here_async(path: str) -> None:
    tell(path)
    await anyio.sleep_forever()


def ignore_term(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(path)
    stay()


def ignore_term_of_a_job(job: Job) -> None:
    ignore_term((job.payload or b"").decode())


def write_pid_of_a_job(job: Job) -> None:
    tell((job.payload or b"").decode())


def hold_a_job(job: Job) -> None:
    """Occupy the process until a file appears."""
    hold((job.payload or b"").decode())


def hold_for_a_run(schedule: Schedule) -> None:
    """As ``hold_a_job``."""
    hold(schedule.name)


def hold(path: str) -> None:
    tell(path)
    wait_for_file(path + ".go")


def take_a_while(job: Job) -> None:
    write_pid_of_a_job(job)
    time.sleep(1.5)


def stay_with_a_job(job: Job) -> None:
    wait_here((job.payload or b"").decode())


def write_pid_of_a_run(schedule: Schedule) -> None:
    tell(schedule.name)


class StopHandlerError(Exception):
    pass


def return_on_term(path: str) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise StopHandlerError

    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(StopHandlerError):
        tell(path)
        stay()
    Path(path + ".tidied").touch()


def return_on_term_of_a_job(job: Job) -> None:
    return_on_term((job.payload or b"").decode())


def raise_on_term(path: str) -> None:
    return_on_term(path)
    raise PlainError


def keep_term_handler() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def dispositions() -> tuple[bool, bool]:
    """Say whether SIGTERM is at its default here, and SIGINT at its default in programs started from here."""
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, answer.stdout.strip() == "True"


def interrupt_myself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def stubborn_program(path: str) -> None:
    spawn(path + ".program", STUBBORN)
    wait_here(path)


def tidy_program(path: str) -> None:
    spawn(path + ".program", TIDY)
    wait_here(path)


def fork_and_return() -> int:
    """Fork, and let both processes return from the handler."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    return -1


def fork_and_exit(code: int) -> int:
    """Fork, and let the new process leave by ``sys.exit``."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    sys.exit(code)


def fork_and_die(path: str) -> None:
    """Die, and leave a fork that keeps every descriptor it has."""
    if os.fork():
        wait_for_file(path)
        os._exit(9)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(path)
    stay()


def close_everything() -> None:
    os.closerange(3, 200)
    stay()
