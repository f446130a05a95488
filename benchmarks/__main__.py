"""All measurements, one after the other."""

from __future__ import annotations

import sys

from . import drain, latency, statements

if __name__ == "__main__":
    sys.exit(max(drain.main(), latency.main([]), statements.main([])))
