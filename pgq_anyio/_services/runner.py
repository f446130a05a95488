"""Runs one job, or one occurrence of a schedule, in a scope of its own and decides its outcome.

Whose cancellation it was is read from scopes and records, never from the type of an exception: a ``CancelledError``
that no scope explains is the handler's own failure. Whatever a handler raises, ``SystemExit`` and
``KeyboardInterrupt`` included, is that job's failure; only a real Ctrl-C goes through, after the job was given back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import anyio
from anyio import CancelScope

from .._context import Context, entered_context, outer_cancelled
from .._db.inner_scopes import InnerScopes, watch_inner_scopes
from .._errors import JobTimeout
from .._holdings import Run
from .._lifecycle import (
    GIVEN_BACK,
    SUCCEEDED,
    UNSTARTED_CANCELLED,
    UNSTARTED_GIVEN_BACK,
    Again,
    ErrorText,
    Failed,
    Outcome,
    decide_outcome,
)
from .._models import CancelReason, Job, Schedule
from .._registry import Executor
from .._retry import RetryPolicy
from .._scheduled import ScheduledRun

logger = logging.getLogger("pgq_anyio.runner")

#: Where the innermost frame of a KeyboardInterrupt lies if Ctrl-C raised it and not the handler.
_INTERRUPT_MODULES = frozenset({"trio._core._ki", "asyncio.runners"})


async def run_job(
    run: Run, scope: CancelScope, inner: InnerScopes, is_over: bool, end: Callable[[Run, Outcome], None]
) -> None:
    """Run a job to its end.

    :param scope: the job's own scope, in which this is called
    :param inner: what is opened in it
    :param is_over: whether no job may start any more
    :param end: called exactly once with the outcome, when no code of the handler runs any more
    """
    job, context = run.held.job, run.context
    outcome: Outcome = GIVEN_BACK
    try:
        if is_over or context.is_requested:
            outcome = unstarted_outcome(context)
            return
        context.open(scope)
        try:
            error = await call_handler(run.entrypoint.executor, job, context, inner, run.entrypoint.timeout)
        except anyio.get_cancelled_exc_class():
            outcome = _decide(run, None, interrupted=True)
            raise
        interrupted = context.has_seen_cancellation or (error is not None and outer_cancelled())
        if error is None and not interrupted and not context.is_requested:
            outcome = SUCCEEDED  # what would be decided, without looking at every scope
        else:
            outcome = _decide(run, error, interrupted=interrupted)
    finally:
        context.close()
        if inner.were_left:
            _tell_left_open(run)
        if outcome is not SUCCEEDED:
            _tell(job, outcome)
        end(run, outcome)


def _tell(job: Job, outcome: Outcome) -> None:
    """Log an attempt that has failed."""
    match outcome:
        case Failed(error):
            logger.warning("job %d of %r failed: %s: %s", job.id, job.entrypoint, error.type, error.message)
        case Again(delay, True, ErrorText() as error):
            logger.info(
                "attempt %d of job %d of %r failed: %s: %s; another follows in %.3g s",
                job.attempt,
                job.id,
                job.entrypoint,
                error.type,
                error.message,
                delay,
            )


def _tell_left_open(run: Run | ScheduledRun) -> None:
    logger.warning(
        "%s has left a cancel scope or a task group open; it was cancelled. Does an async generator yield inside of "
        "it? Iterate that to its end, or close it with contextlib.aclosing()",
        run.title,
    )


def unstarted_outcome(context: Context) -> Outcome:
    """The outcome of a job that was claimed and whose handler has never started."""
    if context.cancel_reason is CancelReason.USER:
        return UNSTARTED_CANCELLED
    return UNSTARTED_GIVEN_BACK


def _decide(run: Run, error: BaseException | None, *, interrupted: bool) -> Outcome:
    if interrupted and run.context.is_waiting:
        return unstarted_outcome(run.context)
    decide = partial(
        decide_outcome,
        error,
        cancel_reason=_cancel_reason(run.context, interrupted=interrupted),
        interrupted=interrupted,
        attempt=run.held.job.attempt,
        max_attempts=run.entrypoint.max_attempts,
        policy=run.entrypoint.retry_policy,
    )
    return _decided(decide, error)


def _decided(decide: Callable[[], Outcome], error: BaseException | None) -> Outcome:
    """What is decided; a failure if what the handler has raised cannot be asked what it means."""
    try:
        return decide()
    except BaseException as broken:  # noqa: ASYNC103  (a class of the handler's own may do anything)
        if isinstance(broken, KeyboardInterrupt) and _is_real_interrupt(broken):
            raise
        if broken is not error:
            broken.__cause__ = error
        return Failed(ErrorText.of(broken))  # noqa: ASYNC104  (nothing is awaited here: it is no cancellation)


def _cancel_reason(context: Context, *, interrupted: bool) -> CancelReason | None:
    reason = context.cancel_reason
    if reason in (None, CancelReason.TIMEOUT) and interrupted and outer_cancelled():
        return CancelReason.SHUTDOWN  # a scope of the caller, around run() itself
    return reason


async def run_schedule(run: ScheduledRun, end: Callable[[ScheduledRun, Outcome], None]) -> None:
    """Run one occurrence of a schedule to its end, as a job is run.

    :param end: called exactly once with the outcome, when no code of the handler runs any more
    """
    context = run.context
    outcome: Outcome = GIVEN_BACK
    inner: InnerScopes | None = None
    try:
        if context.cancel_reason is not None:
            return
        with CancelScope() as scope:
            inner = watch_inner_scopes()
            context.open(scope)
            try:
                error = await call_handler(run.entry.executor, run.schedule, context, inner, timeout=None)
            except anyio.get_cancelled_exc_class():
                outcome = _decide_schedule(context, None, interrupted=True)
                raise
            interrupted = context.has_seen_cancellation or (error is not None and outer_cancelled())
            outcome = _decide_schedule(context, error, interrupted=interrupted)
    finally:
        if inner is not None and inner.were_left:
            _tell_left_open(run)
        if isinstance(outcome, Failed):
            logger.warning("schedule %r failed: %s: %s", run.held.name, outcome.error.type, outcome.error.message)
        end(run, outcome)


def _decide_schedule(context: Context, error: BaseException | None, *, interrupted: bool) -> Outcome:
    """As for a job of one attempt. An occurrence is not tried again: its schedule has a next one."""
    if interrupted and context.is_waiting:
        return GIVEN_BACK

    def decide() -> Outcome:
        outcome = decide_outcome(
            error,
            cancel_reason=_cancel_reason(context, interrupted=interrupted),
            interrupted=interrupted,
            attempt=1,
            max_attempts=1,
            policy=RetryPolicy(),
        )
        if isinstance(outcome, Again):
            assert error is not None, "only an exception asks for another attempt"
            return Failed(outcome.error or ErrorText.of(error))
        return outcome

    return _decided(decide, error)


async def call_handler(
    executor: Executor, task: Job | Schedule, context: Context, inner: InnerScopes, timeout: float | None
) -> BaseException | None:
    """Call a handler and catch what is its own. What it leaves open is closed.

    :param inner: what is opened in this task
    :param timeout: the longest it may run (in seconds), or ``None``
    :return: what it raised, a ``JobTimeout``, or ``None`` if it returned
    """
    interrupted_after: float | None = None
    try:
        with entered_context(context):
            if timeout is None:
                try:
                    await context.follow(executor.execute(task, context))
                finally:
                    if inner.innermost() is not inner.own:
                        await inner.close()  # noqa: ASYNC102  (what it waits for is the handler's)
                return None
            with anyio.move_on_after(timeout) as scope:
                context.open_timeout(scope)
                try:
                    with inner.within():
                        try:
                            await context.follow(executor.execute(task, context))
                        finally:
                            await inner.close()  # noqa: ASYNC102  (as above)
                except BaseException:
                    # Asked first, this is false for a deadline that has passed unseen, in a blocked event loop.
                    if outer_cancelled() and scope.cancel_called:
                        interrupted_after = timeout
                    raise
        if scope.cancelled_caught or (scope.cancel_called and context.has_seen_cancellation):
            return JobTimeout(timeout)
    except anyio.get_cancelled_exc_class() as error:  # noqa: ASYNC103  (one that no scope explains is an error)
        if outer_cancelled():
            raise
        return _failure(error, interrupted_after)  # noqa: ASYNC104  (as above)
    except KeyboardInterrupt as error:
        if _is_real_interrupt(error):
            raise
        return _failure(error, interrupted_after)
    except BaseException as error:  # noqa: BLE001  (a handler may raise anything; that is the job's failure, not ours)
        return _failure(error, interrupted_after)
    return None


def _failure(error: BaseException, interrupted_after: float | None) -> BaseException:
    """What a job fails with whose handler has raised ``error``: under the cancellation of the timeout that is how the
    handler was interrupted, whatever it is.

    :param interrupted_after: the timeout that had cancelled the handler (in seconds), or ``None``
    """
    if interrupted_after is None:
        return error
    failure = JobTimeout(interrupted_after)
    failure.__cause__ = error
    return failure


def _is_real_interrupt(error: KeyboardInterrupt) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in _INTERRUPT_MODULES
