"""Handlers in child processes: a small pool over ``anyio.open_process``, because ``anyio.to_process`` can only kill.

::

    _importable   how a handler is named so that another process finds it
    _wire         what travels between parent and child
    _child        the child's program
    _handle       one child, seen from the parent: start, ask, end
    _pool         the warm children of a worker
"""

from ._errors import ProcessDied, RemoteError
from ._importable import check_importable
from ._pool import ProcessPool

__all__ = ["ProcessDied", "ProcessPool", "RemoteError", "check_importable"]
