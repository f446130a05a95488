"""The program of a worker process in tests: ``python -m tests.worker.process BACKEND OPTIONS``."""

from __future__ import annotations

import json
import logging
import signal
import sys
from functools import partial

from pgq_anyio import PgQueuer
from tests.backends import run_on
from tests.worker.apps import app


def main(backend: str, options: str, app: PgQueuer = app) -> None:
    """Run the worker until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    run = partial(PgQueuer.run, app, signals=(signal.SIGTERM, signal.SIGINT), **json.loads(options))
    run_on(backend, run)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
