"""Hostile values, and a hook that writes down when one is unpickled or compiled, in whatever process this is."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

from pgq_anyio import Job

#: What a value says that must never run.
MARK = "pgq_hostile_value"


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f": {MARK}",)


SOURCE = f"__import__('os').system(': {MARK}')"
PAYLOADS = [pickle.dumps(Bomb()), SOURCE.encode(), b"!!python/object/apply:os.system [': " + MARK.encode() + b"']"]


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down what must not happen."""
    path = os.environ.get("PGQ_TEST_AUDIT")
    if path is None:
        return
    if event == "pickle.find_class":
        is_hostile = arguments[0] in ("os", "posix", "nt")
    else:
        is_hostile = event in ("compile", "os.system") and MARK in str(arguments[0])
    if is_hostile:
        with Path(path).open("a", encoding="utf-8") as audit:
            audit.write(f"{event} {arguments!r}\n")


sys.addaudithook(note)


def in_a_process(job: Job) -> None:
    """Fail with what came from the database, so that it travels both ways."""
    raise ValueError(repr(job.payload), job.payload)
