"""Measurements, on a database of their own: ``python -m benchmarks`` (or ``nox -s bench``).

- ``drain``: jobs per second of one worker, on every event loop, beside PgQueuer.
- ``latency``: from the enqueue to the start of the handler, on an idle worker.
- ``statements``: what a claim and a completion of 100 jobs cost, without a worker around them.

Every measurement runs in a child process of its own, one at a time, and gives one line of JSON.
"""
