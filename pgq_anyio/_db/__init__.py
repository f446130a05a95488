"""psycopg on AnyIO: the only code that waits for sockets, and the only one that knows which backend runs."""

from .batch import batch
from .connection import Connection
from .driver import PsycopgDriver
from .pool import Pool, PoolTimeout
from .retrying import is_transient, retrying
from .statement import Statement

__all__ = ["Connection", "Pool", "PoolTimeout", "PsycopgDriver", "Statement", "batch", "is_transient", "retrying"]
