"""The errors of pgq_anyio: one flat tree.

::

    PgqError                       everything below; the message names the thing and the fix
    ├─ ConfigurationError          a setting, DSN or option cannot be used (also a ValueError)
    ├─ AppLoadError                ``module:attr`` does not lead to a PgQueuer
    ├─ SchemaError                 the schema in the database is missing, old, or newer than this code
    ├─ JobTimeout                  a handler ran longer than its ``timeout``
    ├─ ProcessDied                 the process of a handler ended before the handler did (``_executors``)
    ├─ RemoteError                 in place of what a handler raised in its process and cannot be raised here (there)
    └─ ServerStartError            the embedded server does not start; with the end of its log (``_embedded``)

    psycopg.OperationalError
    └─ PoolTimeout                 no connection of the driver became free in time (``_db``): errors of this kind pass

``WorkerDied`` is the name under which each loss of a job's worker is recorded, and the failure of a job whose worker
was lost ``max_crashes`` times; it is never raised.

Errors of PostgreSQL pass through as psycopg raises them. What a handler raises to say how its job ends
(``Retry``, ``Snooze``, ``Cancel``, ``Discard``) is no error and lives in ``_lifecycle``.
"""

from __future__ import annotations

from collections.abc import Iterator


class PgqError(Exception):
    """Base class of the errors that are pgq_anyio's own. A call at the wrong time is a ``RuntimeError`` without it."""


class ConfigurationError(PgqError, ValueError):
    """Raised if a setting, a DSN or an option cannot be used. The caller's fault; the message says what to write."""


class AppLoadError(PgqError):
    """Raised if ``module:attr`` does not lead to a ``PgQueuer``."""


class SchemaError(PgqError):
    """Raised if the schema in the database does not fit this code. The message names the command that mends it."""


class JobTimeout(PgqError):  # noqa: N818  (the name under which it is recorded)
    """Recorded for a job whose handler ran longer than its ``timeout``.

    Its cause is what the handler raised when it was interrupted, if that was anything else than the cancellation.

    :param timeout: the limit that was reached (in seconds)
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(f"the handler ran longer than its timeout of {timeout:g} s")
        self.timeout = timeout


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside a group, however deep; an error that is no group is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def shown(value: object) -> str:
    """A value in an error message, cut where it would bury the message."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (a whole number of more than 4300 digits, or whatever a class of the user's does)
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else f"{text[:100]}…"


def in_a_line(error: BaseException) -> str:
    """The type of the first leaf, and the first line of what it says, if it says anything: for logs."""
    leaf = next(leaves(error))
    name, message = type(leaf).__name__, str(leaf).partition("\n")[0]
    return f"{name}: {message}" if message else name


def first_leaf(
    group: BaseExceptionGroup[BaseException], *, cancelled: type[BaseException] | None = None
) -> BaseException:
    """The first error of a group, with the others as notes: users see the cause, never the group around it.

    :param cancelled: what a cancellation raises, if the group may hold some. An error goes before these: the scope that
        was cancelled would take it with them.
    """
    found = list(leaves(group))
    if cancelled is not None:
        found = [leaf for leaf in found if not isinstance(leaf, cancelled)] or found
    first, *others = found
    for other in others:
        first.add_note(f"at the same time: {type(other).__name__}: {other}")
    return first
