"""``Queries`` and ``SyncQueries``: what producers and operators do.

The arguments are checked in ``_arguments``, without a database. What then happens in the database is written once, as
steps (``_store/_steps.py``); the two classes differ in who waits.
"""

from ._queries import Queries
from ._sync_queries import SyncQueries

__all__ = ["Queries", "SyncQueries"]
