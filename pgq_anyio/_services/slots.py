"""Starts jobs. Those that never wait share a task; a task per job would cost more than everything else about it.

A *slot* is a task that takes one job after the other and makes its first step. A job that ends with it leaves the task
to the next one. A job that waits keeps the task, and before it does, other slots are woken or started for the jobs
behind it: no job is ever delayed by one that waits. When it has ended, the task takes jobs again; if there are none it
idles until it is wanted, for a new task costs more than a job.

How many slots take jobs at once is learnt: one while no job waits, twice as many after each that did. With one alone,
five hundred jobs of a millisecond took five hundred passes of the event loop to start. Slots that idle made 22,000 of
them a second out of 15,000, and taking jobs together 30,000 (uvloop; 8,300 and 10,300 on trio).

- Each job has a fresh copy of the worker's contextvars context, as a task of its own would have: it is stepped through
  ``Context.run``, from the first step to the last. Whatever starts a task, it starts in the worker's context: it may be
  the end of another job that makes room.
- Each job has a cancel scope of its own while it runs. One that nobody has cancelled is as good as new when the job has
  ended, and is the next job's: opening one costs as much as all the rest (6 µs of 12, on any loop).
  Whether a scope around all jobs was cancelled is looked at once in each turn: within a turn nothing else runs.
- No more jobs run at once than the worker has slots. Those that were claimed ahead start as slots become free, higher
  priorities first; what has waited for ``LONGEST_WAIT`` goes back into the queue, for a worker that has a slot.
- Locks and the like belong to the task. A handler that depends on a task of its own is registered with
  ``own_task=True``; threads are always waited for, so that nothing is gained by stepping them.
- First steps are made in the order of the jobs, which trio does not promise of tasks that are started together. Jobs in
  processes that were claimed ahead wait for their process in this order.
- A task that was asked to cancel, by asyncio's own ``cancel()`` and not by a scope, takes no further job and ends alone
  (``_db/lone_task.py``). Nor does one take any in which a handler has left a scope of its own open
  (``_db/inner_scopes.py``).
- ``cr_frame`` and ``cr_await`` of what a slot awaits are the job's: dumps of a waiting task show the handler's stack.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import anyio
import attrs
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint

from .._db.inner_scopes import InnerScopes, watch_inner_scopes
from .._db.lone_task import end_alone
from .._db.task import cancel_requests, rename_current_task
from .._holdings import Holdings, Run
from .._registry import HandlerKind
from .._remainder import Remainder
from .._stop import Stop

#: After this long without waiting a slot gives other tasks their turn (in seconds).
TURN: Final = 0.005
#: Jobs that were claimed ahead are given back between this time and twice as much after their claim (in seconds).
LONGEST_WAIT: Final = 0.2
#: So many tasks may take jobs at once, if all their first steps together are no longer than a turn.
MOST_TAKERS: Final = 64
#: What a task is called that has no job.
IDLE: Final = "slot"


@attrs.define(eq=False)
class Slots:
    """The jobs of one term that were claimed and have not started yet."""

    #: the group of all jobs
    tasks: TaskGroup
    holdings: Holdings
    #: runs a job to its end, in the scope around the call; nothing but a cancellation or a real Ctrl-C goes through
    run_job: Callable[[Run, CancelScope, InnerScopes, bool], Coroutine[Any, Any, None]]
    #: whether no job may start any more, because a scope around all of them was cancelled
    is_over: Callable[[], bool]
    #: none starts either once this is requested, which a handler may do: what waits is given back a moment later
    stop: Stop
    #: called with jobs that waited for a slot in vain, in their order
    on_late: Callable[[Sequence[Run]], None]
    _waiting: deque[Run] = attrs.field(factory=deque, init=False)
    #: how many tasks are about to take jobs, and how many of them there may be
    _takers: int = attrs.field(default=0, init=False)
    _most_takers: int = attrs.field(default=1, init=False)
    #: slots without a job, each of which waits for its event
    _idle: list[anyio.Event] = attrs.field(factory=list, init=False)
    #: whether no slot is to wait for a job any more
    _is_closed: bool = attrs.field(default=False, init=False)
    #: whether a job makes a step that may be its last: its own task takes the next job then
    _is_stepping: bool = attrs.field(default=False, init=False)
    #: whether there was something to start meanwhile
    _is_wanted: bool = attrs.field(default=False, init=False)
    #: the worker's, as it was before any job
    _variables: Variables = attrs.field(factory=copy_context, init=False)
    #: around the task that watches over those that wait, if there is one
    _watch_scope: CancelScope | None = attrs.field(default=None, init=False)

    def start(self, runs: Sequence[Run]) -> None:
        """Start jobs, in their order, now or when there are slots for them. Never waits.

        :param runs: what one claim brought, higher priorities first
        """
        waiting = self._waiting
        if waiting and runs and runs[0].held.job.priority > waiting[-1].held.job.priority:
            self._waiting = deque(sorted([*waiting, *runs], key=lambda run: -run.held.job.priority))
        else:
            waiting.extend(runs)
        self.go_on()

    def go_on(self) -> None:
        """Start what waits, as far as there are slots for it."""
        if self._is_stepping:
            self._is_wanted = True
            return
        self._is_wanted = False
        while self._wants_taker():
            if _shares_a_task(self._waiting[0]):
                if self._idle:
                    self._wake()
                else:
                    self._takers += 1
                    self._start_task(self._serve, name=IDLE)
            else:
                self._start_alone(self._take())
        if self._waiting and not self._takers and self._watch_scope is None:
            self._watch_scope = CancelScope()
            self._start_task(self._watch, self._watch_scope, name="jobs claimed ahead")

    def _wake(self) -> None:
        self._takers += 1
        self._idle.pop().set()

    def _wants_taker(self) -> bool:
        """Whether there is a job, and a slot for it, that nobody is about to take."""
        takers = self._takers
        if takers >= self._most_takers or takers >= len(self._waiting) or self.stop.requested:
            return False
        return takers < self.holdings.free_slots

    def give_back(self) -> None:
        """Give up on all jobs that have not started, and start no further ones."""
        self._give_back(list(self._waiting))
        self._is_closed = True
        while self._idle:
            self._wake()
        if self._watch_scope is not None:
            self._watch_scope.cancel()

    def _give_back(self, runs: list[Run]) -> None:
        late = {run for run in runs if not run.started and not run.ended}
        if late:
            self._waiting = deque(run for run in self._waiting if run not in late)
            self.on_late([run for run in runs if run in late])

    def _take(self) -> Run:
        run = self._waiting.popleft()
        self.holdings.give_slot(run)
        return run

    def _start_alone(self, run: Run) -> None:
        self._start_task(self._run_alone, run, name=_name(run))

    def _start_task(self, function: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None:
        self._variables.run(partial(self.tasks.start_soon, end_alone, function, *args, name=name))

    def step(self, variables: Variables, step: Callable[..., Any], *args: Any) -> Any:
        """Make a step of a job that has waited, in its own variables; what it waits for next."""
        self._is_stepping = True
        try:
            wanted = variables.run(step, *args)
        finally:
            self._is_stepping = False
        # It goes on waiting. Had it ended, its task would go on.
        if self._is_wanted:
            self.go_on()
        return wanted

    async def _watch(self, scope: CancelScope) -> None:
        """Give back what waits for too long, and everything when no job may start any more."""
        try:
            with scope:
                while self._waiting:
                    waited = list(self._waiting)
                    await anyio.sleep(LONGEST_WAIT)
                    self._give_back(waited)
        finally:
            self._watch_scope = None
            if self.is_over():
                self.give_back()

    async def _run_alone(self, run: Run) -> None:
        with CancelScope() as scope:
            await self.run_job(run, scope, watch_inner_scopes(), self.stop.requested or self.is_over())

    async def _serve(self) -> None:
        count_cancels = cancel_requests()
        try:
            while True:
                with CancelScope() as scope:
                    inner = watch_inner_scopes()
                    await self._serve_in(scope, inner, count_cancels)
                if inner.were_left or _is_as_new(scope) or not await self._is_wanted_again(count_cancels):
                    return
        finally:
            self.go_on()

    async def _serve_in(self, scope: CancelScope, inner: InnerScopes, count_cancels: Callable[[], int]) -> None:
        """Run one job after the other until there will be none, or somebody has cancelled the scope."""
        while True:
            try:
                remainder = await self._take_until_one_waits(scope, inner, count_cancels)
            finally:
                self._takers -= 1
                self.go_on()
            if remainder is not None:
                await remainder
            if inner.were_left or not _is_as_new(scope) or not await self._is_wanted_again(count_cancels):
                return

    async def _is_wanted_again(self, count_cancels: Callable[[], int]) -> bool:
        """Become a taker, now or when there is a job to take; ``False`` if this task is to take none."""
        if count_cancels() or self._is_closed:
            return False
        if self._wants_taker():
            self._takers += 1
            return True
        rename_current_task(IDLE)
        wanted = anyio.Event()
        self._idle.append(wanted)
        try:
            await wanted.wait()
        except anyio.get_cancelled_exc_class():
            if wanted.is_set():
                self._takers -= 1  # somebody else has to be one
            else:
                self._idle.remove(wanted)
            raise
        return True

    async def _take_until_one_waits(
        self, scope: CancelScope, inner: InnerScopes, count_cancels: Callable[[], int]
    ) -> Remainder | None:
        """Make the first steps of jobs, up to one that waits; what is left of it, or ``None`` if there are no more."""
        began_at = time.monotonic()
        is_over = self.is_over()
        while self._waiting and self.holdings.free_slots > 0 and not self.stop.requested:
            run = self._take()
            if not _shares_a_task(run):
                self._start_alone(run)
                continue
            variables = copy_context()
            steps = self.run_job(run, scope, inner, is_over)
            try:
                wanted = variables.run(steps.send, None)
            except StopIteration:
                self._most_takers = max(1, self._most_takers // 2)
                if inner.were_left or run.context.is_requested or count_cancels():
                    break
            else:
                took = max(time.monotonic() - began_at, TURN / MOST_TAKERS)
                self._most_takers = min(2 * self._most_takers, int(TURN / took) or 1)
                rename_current_task(_name(run))
                return Remainder(self.step, wanted, steps, variables)
            if self._waiting and time.monotonic() - began_at > TURN:
                # Shielded: jobs that are not to start any more get their outcome from the runner, not from here.
                await cancel_shielded_checkpoint()
                began_at = time.monotonic()
                is_over = self.is_over()
        return None


def _is_as_new(scope: CancelScope) -> bool:
    """Whether nobody has cancelled it, or is going to once a grace is over."""
    return not scope.cancel_called and scope.deadline == math.inf


def _shares_a_task(run: Run) -> bool:
    return not run.entrypoint.own_task and run.entrypoint.executor.kind is not HandlerKind.THREAD


def _name(run: Run) -> str:
    return f"job:{run.held.job.entrypoint}:{run.held.job.id}"
