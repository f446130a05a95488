"""How a worker runs: the options of ``PgQueuer.run``, checked."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal, get_args

import attrs

from ._durations import count, seconds
from ._errors import ConfigurationError, shown
from ._registry import MIN_LEASE
from ._retention import Retention, RetentionLike, check_retention

Mode = Literal["continuous", "drain"]
OnLeaseLost = Literal["cancel", "continue"]


@attrs.frozen(kw_only=True)
class RunSettings:
    """A recipe for a worker. All durations in seconds."""

    #: the longest pause between two looks at the queue
    dequeue_timeout: float
    #: jobs per claim
    batch_size: int
    #: handlers that run at once
    max_concurrency: int
    mode: Mode
    #: how long the worker counts as alive after a heartbeat
    lease: float
    #: what becomes of jobs whose worker does not
    on_lease_lost: OnLeaseLost
    #: how long running jobs may go on after a request to stop
    shutdown_grace: float
    #: how long a handler may take to end after it was cancelled
    cancel_grace: float
    signals: tuple[signal.Signals, ...]
    #: after how long a blocked event loop is reported, or ``None`` for never
    block_warning: float | None
    #: how long records of finished jobs are kept
    retention: Retention
    #: whether handlers that ignore their cancellation may be left behind by ending the process
    exit_process: bool


def check_run_settings(
    *,
    dequeue_timeout: float | timedelta,
    batch_size: int,
    max_concurrency: int,
    mode: Mode,
    lease: float | timedelta,
    on_lease_lost: OnLeaseLost,
    shutdown_grace: float | timedelta,
    cancel_grace: float | timedelta,
    signals: Sequence[signal.Signals],
    block_warning: float | timedelta | None,
    retention: RetentionLike,
    exit_process: bool,
    called: Callable[[str], str] = str,
) -> RunSettings:
    """Look at what was asked for.

    :param called: gives the name by which whoever asked knows an option
    :raises ConfigurationError: if an option cannot be used; the message names it
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"{called('mode')} must be 'continuous' or 'drain', not {shown(mode)}")
    if on_lease_lost not in get_args(OnLeaseLost):
        raise ConfigurationError(
            f"{called('on_lease_lost')} must be 'cancel' or 'continue', not {shown(on_lease_lost)}"
        )
    return RunSettings(
        dequeue_timeout=seconds(called("dequeue_timeout"), dequeue_timeout, above=0.0),
        batch_size=count(called("batch_size"), batch_size, at_most=10_000),
        max_concurrency=count(called("max_concurrency"), max_concurrency, at_most=100_000),
        mode=mode,
        lease=seconds(called("lease"), lease, at_least=MIN_LEASE),
        on_lease_lost=on_lease_lost,
        shutdown_grace=seconds(called("shutdown_grace"), shutdown_grace),
        cancel_grace=seconds(called("cancel_grace"), cancel_grace),
        signals=_check_signals(signals),
        block_warning=None if block_warning is None else seconds(called("block_warning"), block_warning, above=0.0),
        retention=check_retention(retention),
        exit_process=exit_process,
    )


def _check_signals(numbers: Sequence[signal.Signals]) -> tuple[signal.Signals, ...]:
    try:
        if isinstance(numbers, str | bytes):
            raise TypeError
        return tuple(signal.Signals(number) for number in numbers)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"signals must be a list of signals, such as [signal.SIGTERM], not {shown(numbers)}"
        ) from None
