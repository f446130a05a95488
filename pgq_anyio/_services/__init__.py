"""The worker's long-lived tasks, one per file.

``run_x`` loops until it is cancelled, ``x_once`` does one pass. A service retries what is transient by itself; any
other
error leaves it and ends the run. Services do not know each other: ``_worker.py`` hands them functions and values.
"""
