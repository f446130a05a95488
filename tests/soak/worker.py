"""The program of a worker of the soak test: ``python -m tests.soak.worker BACKEND OPTIONS``, as ``Fleet`` starts it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from tests.worker.process import main

if __name__ == "__main__":
    os.environ["PGQ_TEST_JOURNAL"] = str(Path(os.environ["PGQ_TEST_JOURNALS"], str(os.getpid())))
    from tests.soak.app import app  # opens the journal that the line above names

    logging.getLogger("pgq_anyio.runner").setLevel(logging.ERROR)  # jobs that fail are no news here
    main(sys.argv[1], sys.argv[2], app)
