"""Measurements, on a database of their own: ``python -m benchmarks`` (or ``nox -s bench``, ``nox -s bench-quick``).

One module for each figure, in the order of the list of goals. Each has a quick and a full size, says what it measures,
compares it with its goals, and can be run alone: ``python -m benchmarks drain latency``. The results are kept as JSON,
one file for each figure, so that a long run can be continued (``--left``); ``python -m benchmarks report`` makes the
page of the documentation from them.

Everything that is measured runs in child processes, one measurement at a time.

``python -m benchmarks.statements`` measures parts without goals of their own.
"""
