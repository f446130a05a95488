"""One registration of a worker, and how its services are wired to each other.

::

    worker         what all terms of a worker share
    lines          the connections of a term
    registration   the worker row: made, given up, or left behind
    handlers       what starts and ends jobs and scheduled runs
    news           what is heard, and whom it wakes
    term           the services, and what they are handed

Everything that changes the worker's memory is a synchronous method here or a value below; ``_worker.py`` opens the
groups and scopes in which the services run.
"""

from .term import Term
from .worker import Worker

__all__ = ["Term", "Worker"]
